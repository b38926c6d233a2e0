"""Texts out of one local file: plain text, JSON lines, parquet, and the first two under zstd."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from inheritune.errors import DataError

SUFFIXES = (".txt", ".txt.zst", ".jsonl", ".jsonl.zst", ".json.zst", ".parquet")
"""File types that are read. A text file is one document, the others hold one per line or row."""

CHUNK_BYTES = 2**18
ROWS_AT_ONCE = 256


def suffix_of(path: Path) -> str | None:
    """The readable file type of a path, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def one_document(path: Path) -> bool:
    """Whether the whole file is one document."""
    return suffix_of(path) in (".txt", ".txt.zst")


def read_texts(path: Path, text_field: str) -> Iterator[str]:
    """The texts of one file, in its order.

    Raises:
        DataError: bytes that are not UTF-8, a line that is not JSON, a missing or wrong text field, a damaged or cut
            file; names the file and the line.
    """
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            yield from _parquet_texts(path, text_field)
        elif one_document(path):
            yield _utf8(b"".join(_chunks(path)), str(path)).removeprefix("\ufeff")
        elif suffix is not None:
            yield from _json_texts(path, text_field)
        else:
            raise DataError(f"{path}: this file type is not read. Readable are {', '.join(SUFFIXES)}.")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Check that it is whole and may be read.") from error


def decoded(row: Any, text_field: str, where: str) -> str:
    """The text of a row.

    Raises:
        DataError: the row is no mapping, has no such field, or the field holds no string that UTF-8 can spell.
    """
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: expected an object with fields, got {type(row).__name__}. Write one object per line."
        )
    if text_field not in row:
        raise DataError(
            f"{where}: there is no field {text_field!r}; the fields are {sorted(row)}. "
            "Name the one with the text in data.text_field."
        )
    text = row[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {text_field!r} holds {type(text).__name__}, not a string. "
            "Name the field with the text in data.text_field, or leave this row out."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text has a lone surrogate at character {error.start}, which UTF-8 cannot spell. "
            "Repair or leave out this row."
        ) from error
    return text


def _json_texts(path: Path, text_field: str) -> Iterator[str]:
    """Texts of JSON lines; blank lines are passed over."""
    for number, line in enumerate(_lines(_chunks(path)), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        content = _utf8(line, where)
        try:
            row = json.loads(content.removeprefix("\ufeff") if number == 1 else content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{where}: this is not JSON: {error}. Each line is to be one JSON object, such as "
                f'{{"{text_field}": "..."}}. Repair or leave out this line.'
            ) from error
        yield decoded(row, text_field, where)


def _parquet_texts(path: Path, text_field: str) -> Iterator[str]:
    """Texts of a parquet table's column."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                decoded(dict.fromkeys(names), text_field, str(path))
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[text_field]):
                for value in batch.column(0):
                    number += 1
                    yield decoded({text_field: value.as_py()}, text_field, f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, row {number + 1}: cannot be read as parquet: {error}. Make the file again."
        ) from error


def _utf8(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8. Convert the file to UTF-8, for "
            "instance with iconv."
        ) from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed where its name ends in .zst."""
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
        yield from _decompressed(chunks, path) if path.name.lower().endswith(".zst") else chunks


def _decompressed(chunks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Zstandard frames, one after the other; a cut file is an error, where the library's own reader just ends."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    decoder = None
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                decoder = decoder or decompressor.decompressobj()
                yield decoder.decompress(rest)
                rest = b""
                if decoder.eof:
                    rest, decoder = decoder.unused_data, None
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd data: {error}. Fetch or make the file again.") from error
    if decoder is not None:
        raise DataError(f"{path}: the zstd data ends in the middle. Fetch or make the file again.")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newline, as long as they like."""
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for piece in others:
            yield b"".join(pieces)
            pieces = [piece]
    if any(pieces):
        yield b"".join(pieces)
