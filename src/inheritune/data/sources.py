# LEAD: see NOTE_FROM_LEAD.txt in this folder.
"""Documents from files, folders, globs and hub datasets, always in the same order."""

import glob
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from inheritune.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.zst", ".jsonl.zst")

Source = str | Mapping[str, Any]


class Document(NamedTuple):
    """One text and the name of the source it comes from."""

    text: str
    domain: str


def read_documents(sources: Sequence[Source], *, text_field: str = "text") -> Iterator[Document]:
    """Every document of every source, in the order of the sources, files sorted by path.

    Args:
        sources: paths of files, folders or globs as text; or mappings {"path" or "hub", "name", "split", "revision",
            "config", "text_field"}. A .txt file is one document; .jsonl (also .zst) one per line; .parquet one per row.
        text_field: where JSON lines and tables keep the text.

    Raises:
        DataError: a missing path, an unknown kind of file, a line or row without text; file and line named.
    """
    for source in sources:
        entry = {"path": source} if isinstance(source, str) else dict(source)
        field = entry.get("text_field", text_field)
        if "hub" in entry:
            yield from _read_hub(entry, field)
            continue
        domain = entry.get("name") or _domain(entry["path"])
        for path in _files(entry["path"]):
            for text in _read_file(path, field):
                yield Document(text, domain)


def _domain(path: str) -> str:
    """A source's name by default: its last part without suffixes."""
    return Path(path).name.split(".")[0] or path


def _files(pattern: str) -> list[Path]:
    """The files that a path or glob stands for, sorted."""
    path = Path(pattern)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and each.name.endswith(SUFFIXES))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(each) for each in glob.glob(pattern, recursive=True) if Path(each).is_file())
    if not found:
        raise DataError(
            f"no text at {pattern!r}: it is no file, and no folder or glob that holds {', '.join(SUFFIXES)}. "
            "Check the path; a hub dataset is written {hub: NAME}."
        )
    return found


def _read_file(path: Path, text_field: str) -> Iterator[str]:
    """The texts of one file."""
    if path.name.endswith(".parquet"):
        yield from _read_parquet(path, text_field)
        return
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it, or name other files.")
    try:
        with _open_text(path) as lines:
            if ".jsonl" in path.name:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _text_of_line(line, f"{path}:{number}", text_field)
            else:
                yield lines.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Convert it, for example with iconv.") from error
    except zstandard.ZstdError as error:
        raise DataError(f"{path} is not intact zstd: {error}. Fetch or compress it again.") from error


def _open_text(path: Path) -> io.TextIOBase:
    """A file as UTF-8 text, unpacked where its name ends in .zst."""
    if path.name.endswith(".zst"):
        unpacked = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.TextIOWrapper(unpacked, encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _text_of_line(line: str, where: str, text_field: str) -> str:
    """The text of one JSON line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}). Mend or remove that line.") from error
    if not isinstance(row, dict) or text_field not in row:
        fields = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: no field {text_field!r} (there is: {fields}). Set data.text_field.")
    return _checked(row[text_field], where, text_field)


def _checked(text: Any, where: str, text_field: str) -> str:
    """A text, or an error that says what it is instead."""
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_field!r} is {type(text).__name__}, not text. Set data.text_field.")
    return text


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a table, a batch of rows at a time."""
    import pyarrow.parquet as parquet  # heavy, and only needed here

    try:
        table = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not an intact parquet file: {error}. Fetch it again.") from error
    if text_field not in table.schema_arrow.names:
        fields = ", ".join(table.schema_arrow.names)
        raise DataError(f"{path}: no column {text_field!r} (there is: {fields}). Set data.text_field.")
    row = 0
    for batch in table.iter_batches(columns=[text_field]):
        for text in batch.column(0).to_pylist():
            row += 1
            yield _checked(text, f"{path}: row {row}", text_field)


def _read_hub(entry: Mapping[str, Any], text_field: str) -> Iterator[Document]:
    """The texts of a hub dataset, streamed."""
    from datasets import load_dataset  # heavy, and the only place that may use the network

    name = entry["hub"]
    try:
        rows = load_dataset(
            name, entry.get("config"), split=entry.get("split", "train"), revision=entry.get("revision"), streaming=True
        )
        for number, row in enumerate(rows, start=1):
            if text_field not in row:
                fields = ", ".join(sorted(row))
                raise DataError(f"{name}: no field {text_field!r} (there is: {fields}). Set data.text_field.")
            yield Document(_checked(row[text_field], f"{name}: row {number}", text_field), entry.get("name") or name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the hub dataset {name!r}: {error}. Check name, config, split and the network."
        ) from error
