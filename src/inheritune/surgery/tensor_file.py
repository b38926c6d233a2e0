"""Safetensors files read and written byte range by byte range; a tensor is never built unless its dtype changes.

A file is an 8-byte little-endian header length N, N bytes of JSON (name -> dtype, shape, data_offsets), then the data,
which the tensors fill without gap or overlap.

Source: the safetensors format, https://github.com/huggingface/safetensors (format section).
"""

import hashlib
import json
import math
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from inheritune.errors import SurgeryError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_HEADER_VALUES = 2_000_000
"""Values in a header, so that reading one takes seconds and some hundred MB: about 200,000 tensors in one file.

The largest published models have about 150,000 tensors in all their files together.
"""

MAX_NAME = 1000
"""Characters in a tensor's name."""

CHUNK_BYTES = 16 * 2**20
"""Bytes in memory at a time while a tensor is copied."""

MAX_REASON = 300
"""Characters that are shown of what a file holds and of what others say of it."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element of each dtype of the format."""

MAX_DIMENSIONS = 64
"""torch's own limit."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that can be changed into one another."""


NOT_FINITE_BITS: Mapping[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0_0000_0000_0000), "C64": (np.dtype("<u4"), 0x7F80_0000),
    "F32": (np.dtype("<u4"), 0x7F80_0000), "F16": (np.dtype("<u2"), 0x7C00), "BF16": (np.dtype("<u2"), 0x7F80),
    "F8_E5M2": (np.dtype("u1"), 0x7C), "F8_E4M3": (np.dtype("u1"), 0x7F), "F8_E8M0": (np.dtype("u1"), 0xFF),
}  # fmt: skip
"""The bits that are all set in NaN and infinity, and in nothing else, of each dtype that has them.

Source: IEEE 754; OCP 8-bit Floating Point Specification 1.0 (E4M3 has no infinity); OCP Microscaling Formats 1.0
(E8M0).
"""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: ``[begin, end)`` are absolute byte offsets; dtype in the words of the format.

    ``name`` is its name in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    name: str = ""

    @property
    def num_bytes(self) -> int:
        """Length of the byte range."""
        return self.end - self.begin


@dataclass(frozen=True)
class Piece:
    """One tensor to be written: its name in the new file, where its bytes are, the dtype it is to have.

    ``leading`` is the shape it is to have where that is less than the source's: leading rows and columns of a matrix.
    ``must_be_finite`` asks for a refusal if a value that is written is NaN or infinite.
    """

    name: str
    source: TensorEntry
    dtype: str
    leading: tuple[int, ...] | None = None
    must_be_finite: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the new file."""
        return self.source.shape if self.leading is None else self.leading

    @property
    def num_bytes(self) -> int:
        """Bytes in the new file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, from the file's header alone; the file must be whole.

    Raises:
        SurgeryError: the file is truncated or damaged; says which file and what was expected.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, and a device has no end
            raise OSError("it is no regular file")
        size = found.st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            is_length = 2 <= length <= min(MAX_HEADER_BYTES, size - 8)
            content = file.read(length) if is_length else b""
    except OSError as error:
        raise SurgeryError(f"{path} cannot be read ({error}). Check that it is a file that may be read.") from error
    if not is_length:
        raise _damaged(
            path, f"it has {size} bytes, and its header length reads {length if len(start) == 8 else 'nothing'}"
        )
    try:
        _check_size(content)
        header = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
        _check_metadata(header.pop("__metadata__", {}))
        entries = {name: _entry(path, name, 8 + length, value) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
        raise _damaged(path, f"its header is not a safetensors header ({reason})") from error
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise _damaged(path, f"tensor {name!r} begins at byte {entry.begin}, expected {place}: overlap or gap")
        place = entry.end
    if place != size:
        raise _damaged(path, f"it has {size} bytes, its header promises {place}")
    return entries


def _damaged(path: Path, reason: str) -> SurgeryError:
    return SurgeryError(
        f"{path} is truncated or damaged: {reason}. Download or copy it again, then run the same command."
    )


def _check_size(content: bytes) -> None:
    """Refuse a header before it is parsed whose values would fill the memory, or that does not begin like one.

    Raises:
        ValueError: it has too many, or begins otherwise.
    """
    if content[:1] != b"{":
        raise ValueError(f"it begins with {content[:1]!r}")
    num_values = sum(map(content.count, (b",", b"[", b"{")))
    if num_values > MAX_HEADER_VALUES:
        raise ValueError(f"{num_values} values, at most {MAX_HEADER_VALUES} are read")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _check_metadata(value: Any) -> None:
    """Refuse what the format does not allow, so that no reader sees another file than this one.

    Raises:
        ValueError: it is no mapping of text to text.
    """
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise ValueError("__metadata__ is no mapping of text to text")


def _entry(path: Path, name: str, data_start: int, value: Mapping[str, Any]) -> TensorEntry:
    """One header value, checked.

    Raises:
        ValueError, KeyError, TypeError: it does not describe a tensor.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a tensor is described by {value!r}")
    if set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor has the fields {sorted(value)}, not dtype, shape and data_offsets")
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"shape {shape!r} or offsets {offsets!r} are no lists")
    begin, end = offsets
    if not name.isprintable() or len(name) > MAX_NAME:  # it is shown, and written again
        raise ValueError(f"no name of a tensor: {name[:MAX_NAME]!r}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, at most {MAX_DIMENSIONS} are known")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError(f"shape {shape} or offsets [{begin}, {end}] are not sizes")
    bits = math.prod(shape) * BITS[value["dtype"]]
    if end - begin != bits // 8 or bits % 8:
        raise ValueError(f"{value['dtype']} of shape {shape} needs {bits / 8} bytes, offsets hold {end - begin}")
    return TensorEntry(path, value["dtype"], tuple(shape), data_start + begin, data_start + end, name)


def _opened(entry: TensorEntry) -> BinaryIO:
    """The tensor's file.

    Raises:
        SurgeryError: it is there no more.
    """
    try:
        return entry.file.open("rb")
    except OSError as error:
        raise SurgeryError(
            f"{entry.file} cannot be read any more ({error}): it was changed while it was in use. Run the command "
            "again when nothing else works on that folder."
        ) from error


def chunks(entry: TensorEntry) -> Iterator[bytes]:
    """The tensor's bytes, ``CHUNK_BYTES`` at a time.

    Raises:
        SurgeryError: the file ends before the tensor does (it was changed while it was read).
    """
    with _opened(entry) as file:
        file.seek(entry.begin)
        left = entry.num_bytes
        while left:
            content = file.read(min(CHUNK_BYTES, left))
            if not content:
                raise _damaged(entry.file, f"it ended {left} bytes too early while it was read")
            left -= len(content)
            yield content


def _leading(entry: TensorEntry, shape: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of a matrix's leading rows and columns, row by row where columns are left out."""
    rows, columns = shape
    row_bytes = entry.num_bytes // entry.shape[0]
    kept_bytes = row_bytes // entry.shape[1] * columns
    if kept_bytes == row_bytes:
        yield from chunks(replace(entry, end=entry.begin + rows * row_bytes))
        return
    with _opened(entry) as file:
        for row in range(rows):
            file.seek(entry.begin + row * row_bytes)
            content = file.read(kept_bytes)
            if len(content) != kept_bytes:
                raise _damaged(entry.file, f"it ended in row {row} of {entry.name!r} while it was read")
            yield content


def content_of(piece: Piece) -> Iterator[bytes]:
    """The bytes the piece has in the new file: its source's own or leading ones, converted where asked."""
    taken = chunks(piece.source) if piece.leading is None else _leading(piece.source, piece.leading)
    if piece.dtype == piece.source.dtype:
        yield from taken
        return
    flat = torch.frombuffer(bytearray().join(taken), dtype=FLOATS[piece.source.dtype])
    yield flat.to(FLOATS[piece.dtype]).view(torch.uint8).numpy().tobytes()


class NotFinite:
    """Counts NaN and infinite values in the bytes of a tensor; integers have none."""

    def __init__(self, dtype: str) -> None:
        """Start with no value; ``dtype`` is in the words of the format."""
        self.count = 0
        self.num_values = 0
        self._bits = NOT_FINITE_BITS.get(dtype)
        self._rest = b""

    def add(self, content: bytes) -> None:
        """The next bytes, however they are cut."""
        if self._bits is None:
            return
        unsigned, mask = self._bits
        content = self._rest + content if self._rest else content
        num_values = len(content) // unsigned.itemsize
        self._rest = content[num_values * unsigned.itemsize :]
        bits = np.frombuffer(content, dtype=unsigned, count=num_values)
        self.count += int(np.count_nonzero(bits & mask == mask))
        self.num_values += num_values

    def check(self, entry: TensorEntry, *, converted: bool = False) -> None:
        """Refuse the tensor of these values if one of them was not finite.

        Raises:
            SurgeryError: names file and tensor, and how many of how many values are not finite.
        """
        if not self.count:
            return
        how = " once converted; leave dtype out, or choose one of a larger range" if converted else ""
        advice = "" if converted else " Download or copy it again; if the model is so, it cannot be used."
        raise SurgeryError(
            f"{entry.file}: {self.count} of {self.num_values} values of tensor {entry.name!r} ({entry.dtype}) are NaN "
            f"or infinite{how}.{advice}"
        )


def sha256_of_file(path: Path, must_be_finite: Callable[[str], bool]) -> str:
    """Hex SHA-256 of a whole safetensors file, its tensors looked at on the way: one reading, a chunk at a time.

    Args:
        path: of the file.
        must_be_finite: whether the tensor of this name is refused where it has NaN or infinite values.

    Raises:
        SurgeryError: the file is damaged, or such a tensor has them; names the tensor.
    """
    digest = hashlib.sha256()
    entries = sorted(read_header(path).values(), key=lambda entry: (entry.begin, entry.end))
    with path.open("rb") as file:
        digest.update(file.read(entries[0].begin if entries else path.stat().st_size))
    for entry in entries:
        not_finite = NotFinite(entry.dtype if must_be_finite(entry.name) else "")
        for content in chunks(entry):
            digest.update(content)
            not_finite.add(content)
        not_finite.check(entry)
    return digest.hexdigest()


def sha256(entry: TensorEntry) -> str:
    """Hex SHA-256 of the tensor's bytes in its file."""
    digest = hashlib.sha256()
    for content in chunks(entry):
        digest.update(content)
    return digest.hexdigest()


def write_file(path: Path, pieces: Sequence[Piece]) -> dict[str, str]:
    """Stream the pieces into a new safetensors file, largest alignment first.

    Returns:
        Tensor name -> hex SHA-256 of the bytes that were written.
    """
    ordered = sorted(pieces, key=lambda piece: (-BITS[piece.dtype], piece.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in ordered:
        header[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.num_bytes],
        }
        place += piece.num_bytes
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        return {piece.name: _write_tensor(file, piece) for piece in ordered}


def _write_tensor(file: BinaryIO, piece: Piece) -> str:
    digest = hashlib.sha256()
    not_finite = NotFinite(piece.dtype)
    written = 0
    for content in content_of(piece):
        file.write(content)
        digest.update(content)
        if piece.must_be_finite:
            not_finite.add(content)
        written += len(content)
    if written != piece.num_bytes:
        raise _damaged(piece.source.file, f"tensor {piece.name!r} gave {written} of {piece.num_bytes} bytes")
    if not_finite.count and piece.dtype != piece.source.dtype:
        before = NotFinite(piece.source.dtype)
        for content in chunks(piece.source):
            before.add(content)
        before.check(piece.source)  # the source's fault, not the dtype's
    not_finite.check(piece.source, converted=piece.dtype != piece.source.dtype)
    return digest.hexdigest()


def split_shards(pieces: Sequence[Piece], max_shard_bytes: int) -> list[list[Piece]]:
    """The pieces in order, cut into files of at most ``max_shard_bytes`` (a larger tensor stands alone)."""
    shards: list[list[Piece]] = []
    filled = 0
    for piece in pieces:
        if not shards or filled + piece.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.num_bytes
    return shards
