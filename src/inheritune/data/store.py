"""Finished shards: the manifest, and documents of tokens mapped from disk.

A split is one or more pairs of files: ``SPLIT-00000.bin`` (little-endian uint16 or uint32 tokens) and
``SPLIT-00000.idx`` (little-endian uint64, (documents + 1, 2): token start, byte start).
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune import runs
from inheritune.data.files import read_texts
from inheritune.data.integrity import (
    BLOCK_BYTES,
    INDEX_DTYPE,
    ROW_BYTES,
    TOKEN_BYTES,
    FileRecord,
    check_bytes,
    check_index,
    check_size,
    check_tokens,
)
from inheritune.data.tokenizer import tokenizer_hashes
from inheritune.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
VALIDATION_TEXT = "validation.jsonl.zst"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "watch", "decide")

HASHED_AT_ONCE = 2**22
"""Tokens in memory while they are hashed."""


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocabulary_size <= 65_535 else "<u4")


@dataclass(frozen=True)
class TokenDocuments:
    """The documents of one split, end-of-text first, in stored order."""

    tokens: tuple[npt.NDArray[np.integer], ...]
    """Per shard: all tokens (mapped from disk)."""
    indices: tuple[npt.NDArray[np.uint64], ...]
    """Per shard: (documents + 1, 2) token start, byte start."""

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, end-of-text included; (documents,)."""
        return np.concatenate([np.diff(index[:, 0].astype(np.int64)) for index in self.indices])

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document's text; (documents,)."""
        return np.concatenate([np.diff(index[:, 1].astype(np.int64)) for index in self.indices])

    @cached_property
    def _shard_ends(self) -> npt.NDArray[np.int64]:
        """Documents up to the end of each shard."""
        return np.cumsum([len(index) - 1 for index in self.indices])

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return int(self._shard_ends[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, each document's end-of-text included."""
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the split's texts."""
        return sum(int(index[-1, 1]) for index in self.indices)

    def first(self, num_tokens: int) -> "TokenDocuments":
        """The first documents, ``num_tokens`` in all, the last of them cut; its bytes are those of the whole document.

        Raises:
            DataError: there are fewer tokens.
        """
        if not 1 <= num_tokens <= self.num_tokens:
            raise DataError(
                f"a token budget of {num_tokens} is not to be had: the shards hold {self.num_tokens} training tokens. "
                f"Give 1 to {self.num_tokens}, and raise passes to go over them more often."
            )
        tokens, indices, left = [], [], num_tokens
        for shard, index in zip(self.tokens, self.indices, strict=True):
            taken = min(left, len(shard))
            documents = int(np.searchsorted(index[:, 0], taken))
            cut = index[: documents + 1].copy()
            cut[-1, 0] = taken
            tokens.append(shard[:taken])
            indices.append(cut)
            left -= taken
            if not left:
                break
        return TokenDocuments(tuple(tokens), tuple(indices))

    @property
    def sha256(self) -> str:
        """Of all tokens and where documents begin, whatever files they lie in."""
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        for tokens in self.tokens:
            for begin in range(0, len(tokens), HASHED_AT_ONCE):
                digest.update(tokens[begin : begin + HASHED_AT_ONCE].tobytes())
        return digest.hexdigest()

    def between(self, begin: int, end: int) -> "TokenDocuments":
        """The documents that begin at token ``begin`` or after it, up to token ``end``, the last of them cut.

        Raises:
            DataError: there are fewer than ``end`` tokens.
        """
        held = self.first(end)
        tokens, indices, passed = [], [], 0
        for shard, index in zip(held.tokens, held.indices, strict=True):
            from_document = int(np.searchsorted(index[:-1, 0] + np.uint64(passed), begin))
            passed += len(shard)
            if from_document == len(index) - 1:
                continue
            left = index[from_document:].copy()
            tokens.append(shard[int(left[0, 0]) :])
            left -= left[0]
            indices.append(left)
        return TokenDocuments(tuple(tokens), tuple(indices))

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """Token ids of one document, a view of the file: [end-of-text, t1, ..., tn]."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        shard = int(np.searchsorted(self._shard_ends, index, side="right"))
        local = index - (int(self._shard_ends[shard - 1]) if shard else 0)
        begin, end = self.indices[shard][local : local + 2, 0]
        return self.tokens[shard][int(begin) : int(end)]


@dataclass(frozen=True)
class Shards:
    """A folder made by ``prepare``."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Shards":
        """Open finished shards.

        Args:
            folder: of the shards.
            verify: read every file once and compare it with the hashes of the manifest; False compares sizes only.

        Raises:
            DataError: no shards there, another format, a dtype that does not hold the vocabulary, or a file that is
                missing, cut or changed (the tokenizer's too); names the file, and of a shard the byte offset.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        dtype = _checked_dtype(folder, manifest)
        for shard, tokens, index in _file_records(folder, manifest):
            check_size(tokens, shard["tokens"])
            check_size(index)
            for record in (tokens, index):
                if not record.has_every_block:
                    raise _damaged(folder, f"the block hashes of {record.path.name} are not as many as its blocks")
            if verify:
                check_index(index, shard["tokens"], shard["bytes"])
                check_tokens(tokens, dtype, manifest["max_token_id"])
        if verify:
            _check_tokenizer(folder, manifest["tokenizer"])
        return cls(folder, manifest)

    def sequence(self, split: str) -> TokenDocuments:
        """The documents of "train", "watch" or "decide".

        Raises:
            DataError: another split is asked for.
        """
        if split not in SPLITS:
            raise DataError(f"shards have no split {split!r}. Choose one of {', '.join(SPLITS)}.")
        shards = self.manifest["splits"][split]["shards"]
        dtype = _checked_dtype(self.folder, self.manifest)
        return TokenDocuments(
            tokens=tuple(
                np.memmap(self.folder / each["file"], dtype=dtype, mode="r").view(np.ndarray) for each in shards
            ),
            indices=tuple(
                np.fromfile(self.folder / each["index"], dtype=INDEX_DTYPE).reshape(-1, 2).astype(np.uint64)
                for each in shards
            ),
        )

    def validation_texts(self, half: str) -> list[str]:
        """The texts of "watch" or "decide", in the order of their documents.

        Raises:
            DataError: another half is asked for, or the file is missing or changed.
        """
        if half not in ("watch", "decide"):
            raise DataError(f"the validation set has no half {half!r}. Choose watch or decide.")
        path = self.folder / VALIDATION_TEXT
        check_bytes(path, self.manifest["validation_text"]["sha256"])
        splits = read_texts(path, "split")
        return [text for split, text in zip(splits, read_texts(path, "text"), strict=True) if split == half]

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that made the tokens."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def sha256(self) -> str:
        """One hash for all tokens: SHA-256 over the hashes of all shards and their indices."""
        return self._sha256_of(SPLITS)

    @property
    def validation_sha256(self) -> str:
        """One hash for the validation set, whatever the training side is: of the shards of both halves."""
        return self._sha256_of(("watch", "decide"))

    def _sha256_of(self, splits: tuple[str, ...]) -> str:
        hashes = [
            shard[name]
            for split in splits
            for shard in self.manifest["splits"][split]["shards"]
            for name in ("sha256", "index_sha256")
        ]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "sha256": self.sha256, "manifest": self.manifest}


def check_vocabulary(shards: Shards, vocabulary_size: int) -> None:
    """Refuse shards with a token id that the model's embedding does not have.

    Raises:
        DataError: the largest token id is ``vocabulary_size`` or more.
    """
    largest = shards.manifest["max_token_id"]
    if largest >= vocabulary_size:
        raise DataError(
            f"{shards.folder} holds token id {largest}, and the model's embedding has {vocabulary_size} rows (ids 0 to "
            f"{vocabulary_size - 1}). The data were prepared with another tokenizer: prepare them with the model's own."
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, of this format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no shards (no {MANIFEST}). Make them with `inheritune prepare`.")
    try:
        manifest = runs.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}. Prepare the data again into a new folder.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path} has format {found!r}, and this version reads format {FORMAT}. "
            "Prepare the data again into a new folder."
        )
    lacking = sorted(
        {"dtype", "splits", "settings", "max_token_id", "vocabulary_size", "tokenizer", "validation_text"}
        - set(manifest)
    )
    whole = not lacking and isinstance(manifest["settings"], dict) and isinstance(manifest["splits"], dict)
    if not whole or sorted(manifest["splits"]) != sorted(SPLITS):
        raise DataError(
            f"{path} is not whole (it lacks {', '.join(lacking) or 'splits or settings'}). "
            "Prepare the data again into a new folder."
        )
    return dict(manifest)


def _checked_dtype(folder: Path, manifest: dict[str, Any]) -> np.dtype[Any]:
    """The little-endian dtype of the tokens.

    Raises:
        DataError: it is none that tokens have, or does not hold every id of the vocabulary.
    """
    name, vocabulary_size, largest = (manifest[key] for key in ("dtype", "vocabulary_size", "max_token_id"))
    if type(vocabulary_size) is not int or type(largest) is not int or largest < 0:
        raise _damaged(folder, f"vocabulary_size {vocabulary_size!r} or max_token_id {largest!r} is no size")
    if not isinstance(name, str) or name not in TOKEN_BYTES:
        raise _damaged(folder, f"it says dtype {name!r}, and tokens are {' or '.join(TOKEN_BYTES)}")
    top = 2 ** (8 * TOKEN_BYTES[name]) - 1
    if max(vocabulary_size - 1, largest) > top:
        raise _damaged(
            folder,
            f"it says dtype {name}, which holds ids up to {top}, a vocabulary of {vocabulary_size} entries and "
            f"token ids up to {largest}",
        )
    dtype: np.dtype[Any] = np.dtype(name).newbyteorder("<")
    return dtype


def _file_records(folder: Path, manifest: dict[str, Any]) -> list[tuple[dict[str, Any], FileRecord, FileRecord]]:
    """Each shard's part of the manifest, and what is said of its tokens and its index.

    Raises:
        DataError: the manifest is damaged: a key or hash is missing, a name leads elsewhere, totals do not add up.
    """
    width = TOKEN_BYTES[manifest["dtype"]]
    block_bytes = manifest.get("block_bytes", BLOCK_BYTES)
    if type(block_bytes) is not int or block_bytes < ROW_BYTES or block_bytes % ROW_BYTES:
        raise _damaged(folder, f"block_bytes is {block_bytes!r}")

    def record(name: str, num_bytes: int, sha256: str, at_blocks: list[str] | None) -> FileRecord:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no file of this folder")
        return FileRecord(
            folder / name, num_bytes, sha256, None if at_blocks is None else tuple(at_blocks), block_bytes
        )

    found = []
    try:
        for split, said in manifest["splits"].items():
            shards = said["shards"]
            for key in ("tokens", "documents", "bytes"):
                if not all(type(shard[key]) is int and shard[key] >= 0 for shard in shards):
                    raise ValueError(f"{key} of the shards of {split!r} are no sizes")
                total = sum(shard[key] for shard in shards)
                if not shards or total != said[key]:
                    raise ValueError(f"{len(shards)} shards of {split!r} hold {total} {key}, expected {said[key]}")
            for shard in shards:
                tokens = record(shard["file"], shard["tokens"] * width, shard["sha256"], shard.get("sha256_at_blocks"))
                index_bytes = (shard["documents"] + 1) * ROW_BYTES
                at_blocks = shard.get("index_sha256_at_blocks")
                found.append((shard, tokens, record(shard["index"], index_bytes, shard["index_sha256"], at_blocks)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    return found


def _check_tokenizer(folder: Path, said: Any) -> None:
    """Compare the tokenizer beside the shards with the one that made the tokens.

    Raises:
        DataError: a file is missing, new or changed; names it.
    """
    found = tokenizer_hashes(folder / TOKENIZER_FOLDER)
    try:
        expected = dict(said.get("files", found))  # shards of an earlier version know only tokenizer.json
        if "tokenizer.json" in found:
            expected["tokenizer.json"] = str(said["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder, f"what it says of the tokenizer cannot be read ({error!r})") from error
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if changed:
        name = changed[0]
        what = "is missing" if name not in found else "is new" if name not in expected else "was changed"
        raise DataError(
            f"{folder / TOKENIZER_FOLDER / name} {what} since the data were prepared, so their tokens may mean "
            "something else to this tokenizer. Put the former file back, or prepare the data again into a new folder."
        )


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder / MANIFEST} is damaged: {reason}. Restore it, or prepare the data again into a new folder."
    )
