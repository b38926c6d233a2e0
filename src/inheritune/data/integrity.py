"""Whether shards are the bytes that were written: each file is read once, and a fault is named by its byte offset.

For each file the manifest holds the SHA-256 of everything up to the end of each block; the last is that of the whole
file, and the first that differs says in which block the first changed byte lies.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.errors import DataError

BLOCK_BYTES = 4 * 2**20
"""A multiple of every token's and every index row's size, so that none lies in two blocks."""

INDEX_DTYPE = np.dtype("<u8")
ROW_BYTES = 2 * INDEX_DTYPE.itemsize
TOKEN_BYTES = {"uint16": 2, "uint32": 4}

ADVICE = "Restore the file, or prepare the data again into a new folder."


class BlockHashes:
    """SHA-256 of a file that is being written, noted at the end of every block."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._noted: list[str] = []

    def add(self, content: bytes) -> None:
        """The next bytes of the file."""
        view = memoryview(content)
        while len(view):
            part = view[: BLOCK_BYTES - self._num_bytes % BLOCK_BYTES]
            self._digest.update(part)
            self._num_bytes += len(part)
            view = view[len(part) :]
            if self._num_bytes % BLOCK_BYTES == 0:
                self._noted.append(self._digest.hexdigest())

    @property
    def sha256(self) -> str:
        """Of everything added so far."""
        return self._digest.hexdigest()

    @property
    def at_blocks(self) -> list[str]:
        """Hex SHA-256 of everything up to the end of each block; the last is ``sha256``."""
        whole = self._num_bytes > 0 and self._num_bytes % BLOCK_BYTES == 0
        return self._noted if whole else [*self._noted, self.sha256]


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    path: Path
    num_bytes: int
    sha256: str
    at_blocks: tuple[str, ...] | None
    """See ``BlockHashes.at_blocks``; None where the shards are older than these hashes."""
    block_bytes: int = BLOCK_BYTES

    @property
    def has_every_block(self) -> bool:
        """Whether there are as many hashes of blocks as blocks, where there are any."""
        return self.at_blocks is None or len(self.at_blocks) == -(-self.num_bytes // self.block_bytes)


def check_size(record: FileRecord, num_tokens: int | None = None) -> None:
    """Compare a file's size with what the manifest says; ``num_tokens`` is given for a file of tokens.

    Raises:
        DataError: the file is missing, empty, too short or too long; names the byte.
    """
    path, expected = record.path, record.num_bytes
    if not path.is_file():
        raise DataError(f"{path} is missing, and the manifest names it. {ADVICE}")
    size = path.stat().st_size
    if size == expected:
        return
    why = f"it was changed from byte {expected} on" if size > expected else f"it ends at byte {size}"
    others = [name for name, width in TOKEN_BYTES.items() if num_tokens and size == num_tokens * width]
    if others:
        why = f"its tokens seem to be {others[0]}, which is not the manifest's dtype"
    raise DataError(f"{path} has {size} bytes, and the manifest says {expected}: {why}. {ADVICE}")


def check_tokens(record: FileRecord, dtype: np.dtype[Any], max_token_id: int) -> None:
    """Read a file of tokens once and compare it with the manifest; its size is checked already.

    Raises:
        DataError: a token id above ``max_token_id`` (names its byte), or bytes that are not those that were written
            (names the bytes of their block).
    """
    for begin, content in _blocks(record):
        tokens = np.frombuffer(content, dtype=dtype)
        if int(tokens.max()) > max_token_id:
            place = int(np.argmax(tokens > max_token_id))
            raise DataError(
                f"{record.path}, byte {begin + place * dtype.itemsize}: token id {tokens[place]} is above "
                f"{max_token_id}, the manifest's largest, so file or manifest was changed. {ADVICE}"
            )


def check_index(record: FileRecord, num_tokens: int, num_bytes: int) -> None:
    """Read an index once and compare it with the manifest; its size is checked already.

    Args:
        record: of the index.
        num_tokens: of its shard.
        num_bytes: UTF-8 bytes of the texts of its shard.

    Raises:
        DataError: starts that do not rise from 0 to the shard's end (names the byte), or bytes that are not those that
            were written (names the bytes of their block).
    """
    before: npt.NDArray[np.uint64] | None = None
    ends = np.array([num_tokens, num_bytes], dtype=np.uint64)
    for begin, content in _blocks(record):
        rows = np.frombuffer(content, dtype=INDEX_DTYPE).reshape(-1, 2)
        is_wrong: npt.NDArray[np.bool_] = np.any(rows > ends, axis=1)
        if before is None:
            is_wrong[0] |= rows[0].any()
        else:
            is_wrong[0] |= rows[0, 0] <= before[0] or rows[0, 1] < before[1]
        is_wrong[1:] |= (rows[1:, 0] <= rows[:-1, 0]) | (rows[1:, 1] < rows[:-1, 1])
        if begin + len(content) == record.num_bytes:
            is_wrong[-1] |= (rows[-1] != ends).any()
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise DataError(
                f"{record.path}, byte {begin + row * ROW_BYTES}: document {begin // ROW_BYTES + row} starts at "
                f"token {rows[row, 0]}, text byte {rows[row, 1]}, and starts must rise from 0 to token {num_tokens}, "
                f"text byte {num_bytes}: the file was changed. {ADVICE}"
            )
        before = rows[-1]


def check_bytes(path: Path, sha256: str) -> None:
    """Compare a small file with its SHA-256.

    Raises:
        DataError: the file is missing or has another one.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing, and the manifest names it. {ADVICE}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{path} has SHA-256 {found}, and the manifest says {sha256}: it was changed. {ADVICE}")


def _blocks(record: FileRecord) -> Iterator[tuple[int, bytes]]:
    """Byte offset and content of each block, which is compared with its hash once the caller has looked at it.

    Raises:
        DataError: a block is not the one that was written, or the file became shorter.
    """
    digest = hashlib.sha256()
    with record.path.open("rb") as file:
        for number, begin in enumerate(range(0, record.num_bytes, record.block_bytes)):
            end = min(begin + record.block_bytes, record.num_bytes)
            content = file.read(end - begin)
            if len(content) != end - begin:
                raise DataError(f"{record.path} ended at byte {begin + len(content)} while it was read. {ADVICE}")
            yield begin, content
            digest.update(content)
            if record.at_blocks is not None and digest.hexdigest() != record.at_blocks[number]:
                raise DataError(
                    f"{record.path} was changed between byte {begin} and byte {end} (block {number + 1} of "
                    f"{len(record.at_blocks)}): the SHA-256 up to there is {digest.hexdigest()}, and the manifest says "
                    f"{record.at_blocks[number]}. {ADVICE}"
                )
    if digest.hexdigest() != record.sha256:
        raise DataError(
            f"{record.path} has SHA-256 {digest.hexdigest()}, and the manifest says {record.sha256}: it was changed "
            f"(where in the file is not known, since the manifest has no hashes of blocks). {ADVICE}"
        )
