"""What was written is read back: hashed, looked through for NaN, and compared with where it came from."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from inheritune.errors import SurgeryError
from inheritune.surgery.tensor_file import NotFinite, Piece, TensorEntry, chunks, content_of, read_header

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 2
"""Hashing lets other threads work; more than two are slower than the memory."""


def hash_written(files: Mapping[Path, Sequence[Piece]], *, compare: bool = True) -> dict[str, str]:
    """Read every tensor of new files back.

    Args:
        files: what was to be written where.
        compare: hold each tensor's bytes against its source's, converted where that was asked.

    Returns:
        Tensor name -> hex SHA-256 of the bytes in the file.

    Raises:
        SurgeryError: a tensor is not what was to be written, or one that must be finite is not; names it.
    """
    written = {path: read_header(path) for path in files}
    todo = [(piece, path) for path, pieces in files.items() for piece in pieces]
    hashes = in_threads(lambda each: _hash(each[0], written[each[1]].get(each[0].name), each[1], compare), todo)
    return {piece.name: digest for (piece, _), digest in zip(todo, hashes, strict=True)}


def in_threads(call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The call's result for each item, in order; after the first error, or an interrupt, nothing more is begun."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        return list(threads.map(call, items))
    finally:
        threads.shutdown(cancel_futures=True)


def _hash(piece: Piece, entry: TensorEntry | None, path: Path, compare: bool) -> str:
    """One tensor's hash, after it was looked at."""
    if entry is None or (entry.dtype, entry.shape) != (piece.dtype, piece.shape):
        raise _otherwise(piece.name, path)
    digest, not_finite = hashlib.sha256(), NotFinite(piece.dtype if piece.must_be_finite else "")
    expected = content_of(piece) if compare else None
    ahead = b""
    for content in chunks(entry):
        digest.update(content)
        not_finite.add(content)
        if expected is not None:
            while len(ahead) < len(content) and (more := next(expected, b"")):
                ahead = ahead + more if ahead else more
            if not ahead.startswith(content):
                raise _otherwise(piece.name, path)
            ahead = ahead[len(content) :]
    if piece.source is not None:
        if not_finite.count and piece.is_converted:
            before = NotFinite(piece.source.dtype)
            for content in chunks(piece.source):
                before.add(content)
            before.check(piece.source)  # the source's fault, not the dtype's
        not_finite.check(piece.source, converted=piece.is_converted)
    return digest.hexdigest()


def _otherwise(name: str, path: Path) -> SurgeryError:
    return SurgeryError(
        f"tensor {name!r} reads back otherwise than it was written to {path.parent.parent}. "
        "The disk is at fault, or the reference was changed meanwhile: check both, or name a folder on another disk."
    )
