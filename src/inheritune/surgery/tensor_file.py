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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from inheritune.errors import SurgeryError
from inheritune.runs import write_all
from inheritune.surgery.byte_range import copy_range, preallocate

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_HEADER_VALUES = 2_000_000
"""Values in a header, so that reading one takes seconds and some hundred MB: about 200,000 tensors in one file.

The largest published models have about 150,000 tensors in all their files together.
"""

MAX_NAME = 1000
"""Characters in a tensor's name."""

CHUNK_BYTES = 4 * 2**20
"""Bytes in memory at a time while a tensor is read: few enough for a processor's cache."""

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

    Attributes:
        name: in the new file.
        source: where its bytes are; None for a constant: zeros of the shape ``leading``.
        dtype: in the new file.
        leading: the shape it is to have where that is less than the source's: leading rows and columns of a matrix.
        must_be_finite: asks for a refusal if a value that is written is NaN or infinite.
    """

    name: str
    source: TensorEntry | None
    dtype: str
    leading: tuple[int, ...] | None = None
    must_be_finite: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the new file."""
        if self.leading is not None:
            return self.leading
        assert self.source is not None, "a constant has its shape in leading"
        return self.source.shape

    @property
    def num_bytes(self) -> int:
        """Bytes in the new file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8

    @property
    def is_converted(self) -> bool:
        """Whether its values change their dtype on the way."""
        return self.source is not None and self.dtype != self.source.dtype

    @property
    def is_range(self) -> bool:
        """Whether its bytes are one range of its source's, as they are."""
        if self.source is None or self.is_converted:
            return False
        return self.leading is None or self.leading[1:] == self.source.shape[1:]


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


def _opened(path: Path) -> BinaryIO:
    """A file that was read before.

    Raises:
        SurgeryError: it is there no more.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise SurgeryError(
            f"{path} cannot be read any more ({error}): it was changed while it was in use. Run the command "
            "again when nothing else works on that folder."
        ) from error


def chunks(entry: TensorEntry) -> Iterator[bytes]:
    """The tensor's bytes, ``CHUNK_BYTES`` at a time.

    Raises:
        SurgeryError: the file ends before the tensor does (it was changed while it was read).
    """
    with _opened(entry.file) as file:
        file.seek(entry.begin)
        left = entry.num_bytes
        while left:
            content = file.read(min(CHUNK_BYTES, left))
            if not content:
                raise _damaged(entry.file, f"it ended {left} bytes too early while it was read")
            left -= len(content)
            yield content


def _leading(entry: TensorEntry, shape: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of a matrix's leading rows and columns, some rows at a time where columns are left out."""
    rows, columns = shape
    row_bytes = entry.num_bytes // entry.shape[0]
    kept_bytes = row_bytes // entry.shape[1] * columns
    if kept_bytes == row_bytes:
        yield from chunks(replace(entry, end=entry.begin + rows * row_bytes))
        return
    rows_at_once = max(1, CHUNK_BYTES // row_bytes)
    with _opened(entry.file) as file:
        file.seek(entry.begin)
        for row in range(0, rows, rows_at_once):
            num_rows = min(rows_at_once, rows - row)
            content = file.read(num_rows * row_bytes)
            if len(content) != num_rows * row_bytes:
                raise _damaged(entry.file, f"it ended in row {row + len(content) // row_bytes} of {entry.name!r}")
            yield np.frombuffer(content, np.uint8).reshape(num_rows, row_bytes)[:, :kept_bytes].tobytes()


def content_of(piece: Piece) -> Iterator[bytes]:
    """The bytes the piece has in the new file, a chunk at a time.

    They are its source's own or leading ones, converted where asked, or zeros where it has no source.

    Raises:
        SurgeryError: the source ends before the tensor does.
    """
    if piece.source is None:
        for begin in range(0, piece.num_bytes, CHUNK_BYTES):
            yield bytes(min(CHUNK_BYTES, piece.num_bytes - begin))
        return
    taken = chunks(piece.source) if piece.leading is None else _leading(piece.source, piece.leading)
    if not piece.is_converted:
        yield from taken
        return
    old, new = FLOATS[piece.source.dtype], FLOATS[piece.dtype]
    rest = b""
    for content in taken:
        content = rest + content if rest else content
        whole = len(content) // old.itemsize * old.itemsize
        content, rest = content[:whole], content[whole:]
        if content:
            yield torch.frombuffer(bytearray(content), dtype=old).to(new).view(torch.uint8).numpy().tobytes()


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
        bits = np.frombuffer(content, dtype=unsigned, count=num_values) & mask
        if num_values and bits.max() == mask:  # the largest that it can be: rare, and quick to see
            self.count += int(np.count_nonzero(bits == mask))
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


def ordered(pieces: Sequence[Piece]) -> list[Piece]:
    """The order of tensors in a file: largest alignment first, then as they lie in their sources; constants last."""

    def place(piece: Piece) -> tuple[Any, ...]:
        source = piece.source
        where = (True, "", 0) if source is None else (False, str(source.file), source.begin)
        return (-BITS[piece.dtype], *where, piece.name)

    return sorted(pieces, key=place)


def encode_header(pieces: Sequence[Piece]) -> bytes:
    """The first bytes of a file of these tensors, in this order: length, JSON, and spaces up to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in pieces:
        header[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.num_bytes],
        }
        place += piece.num_bytes
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


@dataclass(frozen=True)
class Run:
    """Neighbouring pieces of a new file that are neighbours in one source file, too: one range of bytes.

    Attributes:
        file: the source.
        begin: first byte in the source.
        at: first byte in the new file.
        num_bytes: length of both.
    """

    file: Path
    begin: int
    at: int
    num_bytes: int


def runs_of(pieces: Sequence[Piece], at: int) -> list[Run | Piece]:
    """What has to be done for these pieces, in this order: ranges to copy, as few as can be, and pieces to make.

    Args:
        pieces: in the order of the new file.
        at: where the first one begins there.
    """
    todo: list[Run | Piece] = []
    for piece in pieces:
        if not piece.is_range:
            todo.append(piece)
        else:
            assert piece.source is not None
            file, begin = piece.source.file, piece.source.begin
            last = todo[-1] if todo else None
            if isinstance(last, Run) and last.file == file and last.begin + last.num_bytes == begin:
                todo[-1] = replace(last, num_bytes=last.num_bytes + piece.num_bytes)
            else:
                todo.append(Run(file, begin, at, piece.num_bytes))
        at += piece.num_bytes
    return todo


def write_file(path: Path, pieces: Sequence[Piece]) -> None:
    """Stream the pieces into a new safetensors file: ranges of bytes from file to file, the rest a chunk at a time.

    What was written is not looked at: that is ``tensor_check.hash_written``'s.

    Raises:
        SurgeryError: a source ends before a tensor does (it was changed while it was read).
        OSError: the file cannot be written; a full disk says so before anything is copied where it can.
    """
    in_order = ordered(pieces)
    header = encode_header(in_order)
    num_bytes = len(header) + sum(piece.num_bytes for piece in in_order)
    with path.open("xb", buffering=0) as file, ExitStack() as opened:
        sources: dict[Path, int] = {}
        preallocate(file.fileno(), num_bytes)
        write_all(file, header)
        for part in runs_of(in_order, len(header)):
            if isinstance(part, Piece):
                for content in content_of(part):
                    write_all(file, content)
                continue
            if part.file not in sources:
                sources[part.file] = opened.enter_context(_opened(part.file)).fileno()
            copied = copy_range(sources[part.file], part.begin, file.fileno(), part.at, part.num_bytes)
            if copied != part.num_bytes:
                raise _damaged(part.file, f"it ended {part.num_bytes - copied} bytes too early while it was read")
            file.seek(part.at + part.num_bytes)


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
