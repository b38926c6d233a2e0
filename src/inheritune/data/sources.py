"""Documents from local files and hub datasets, always in the same order.

A source is a path, glob or folder, ``hub:NAME``, or a mapping ``{path | hub, name, split, revision, config,
text_field}`` (``name`` is the domain). The hub is touched only where a source names it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from inheritune.data.files import SUFFIXES, decoded, one_document, read_texts, suffix_of
from inheritune.data.store import MANIFEST, VALIDATION_TEXT
from inheritune.errors import DataError

HUB_PREFIX = "hub:"
MAPPING_KEYS = {"path", "hub", "name", "split", "revision", "config", "text_field"}

Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """One text and where it belongs."""

    text: str
    domain: str


@dataclass(frozen=True)
class LocalFile:
    """A file to read."""

    path: Path
    domain: str
    text_field: str


@dataclass(frozen=True)
class HubDataset:
    """A hub dataset to stream."""

    hub: str
    domain: str
    text_field: str
    split: str = "train"
    revision: str | None = None
    config: str | None = None


def read_documents(sources: Source | Sequence[Source], text_field: str = "text") -> Iterator[Document]:
    """Every document of the sources, in the order of sources, sorted files and lines; the same order each time.

    Args:
        sources: one source or several; see the module.
        text_field: field with the text in JSON lines and tables; a mapping's own ``text_field`` goes first.

    Raises:
        DataError: a source that is not there or holds no readable file, and everything wrong inside a file, with
            file and line. All sources are looked for before the first document is given.
    """
    for part in find_parts(sources, text_field):
        if isinstance(part, HubDataset):
            yield from _read_hub(part)
        else:
            for text in read_texts(part.path, part.text_field):
                yield Document(text, part.domain)


def listed(sources: Source | Sequence[Source]) -> list[Source]:
    """One source or several, as a list."""
    if isinstance(sources, str | Path | Mapping):
        return [sources]
    return list(sources)


def find_parts(sources: Source | Sequence[Source], text_field: str = "text") -> list[LocalFile | HubDataset]:
    """The files and hub datasets that the sources mean, in reading order. Nothing is opened.

    Raises:
        DataError: no source, a source that is not there, an unknown file type, a folder without readable files.
    """
    every = listed(sources)
    if not every:
        raise DataError("no data source is given. Name files, folders, globs or hub:NAME in data.sources.")
    return [part for source in every for part in _parts_of(source, text_field)]


def _parts_of(source: Source, text_field: str) -> list[LocalFile | HubDataset]:
    """One source's files or dataset."""
    if isinstance(source, Mapping):
        return _parts_of_mapping(source, text_field)
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        name = source.removeprefix(HUB_PREFIX)
        return [HubDataset(hub=name, domain=name, text_field=text_field)]
    return list(_local_files(str(source), text_field, None))


def _parts_of_mapping(source: Mapping[str, Any], text_field: str) -> list[LocalFile | HubDataset]:
    """The parts of ``{path | hub, ...}``."""
    given = {key: value for key, value in source.items() if value is not None}
    unknown = sorted(set(given) - MAPPING_KEYS)
    if unknown or ("path" in given) == ("hub" in given):
        raise DataError(
            f"the data source {dict(source)} {'has unknown keys ' + str(unknown) if unknown else 'is not clear'}. "
            f"Give exactly one of path and hub, and of the rest only {sorted(MAPPING_KEYS - {'path', 'hub'})}."
        )
    field = str(given.get("text_field", text_field))
    if "path" in given:
        for_hub = sorted(set(given) & {"split", "revision", "config"})
        if for_hub:
            raise DataError(f"the data source {dict(source)} has {for_hub}, which only a hub dataset knows. Drop it.")
        return list(_local_files(str(given["path"]), field, given.get("name")))
    name = str(given["hub"]).removeprefix(HUB_PREFIX)
    return [
        HubDataset(
            hub=name,
            domain=str(given.get("name", given.get("config", name))),
            text_field=field,
            split=str(given.get("split", "train")),
            revision=given.get("revision"),
            config=given.get("config"),
        )
    ]


def _local_files(pattern: str, text_field: str, name: str | None) -> list[LocalFile]:
    """The files of a path, folder or glob, sorted."""
    path = Path(pattern).expanduser()
    if path.exists():
        matches = [path]
    elif has_magic(pattern):
        every = {Path(match) for match in glob(str(path), recursive=True)}  # noqa: PTH207  (absolute patterns too)
        matches = sorted(match for match in every if every.isdisjoint(match.parents))  # a folder reads what is below
        if not matches:
            raise DataError(f"no file matches the data source {pattern!r} (seen from {Path.cwd()}). Correct the glob.")
    else:
        raise DataError(
            f"the data source {pattern!r} is no file or folder here (seen from {Path.cwd()}). Correct the path; if it "
            f"is a dataset of the Hugging Face hub, write {HUB_PREFIX}{pattern}."
        )
    files: list[LocalFile] = []
    for match in matches:
        if match.is_dir():
            files += _files_of_folder(match, text_field, name)
        elif suffix_of(match) is None:
            raise DataError(f"{match}: this file type is not read. Readable are {', '.join(SUFFIXES)}, and folders.")
        else:
            files.append(LocalFile(match, name or _domain(match, None), text_field))
    return files


def _files_of_folder(folder: Path, text_field: str, name: str | None) -> list[LocalFile]:
    """Readable files below the folder, sorted by their path in it; hidden files and other types are passed over.

    Raises:
        DataError: there is none, or a folder of shards, whose validation text is no source.
    """
    found = []
    others: set[str] = set()
    for path in sorted(folder.rglob("*"), key=lambda each: each.relative_to(folder).parts):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.name == VALIDATION_TEXT and (path.parent / MANIFEST).exists():
            raise DataError(
                f"{path.parent} holds shards that were prepared, not raw text. Name the text that they were made "
                "from, or, to score models on their validation text, this folder by itself."
            )
        if suffix_of(path) is None:
            others.add(path.suffix or path.name)
        else:
            found.append(LocalFile(path, name or _domain(path, folder), text_field))
    if not found:
        there = f"only {', '.join(sorted(others)[:8])}" if others else "nothing"
        raise DataError(
            f"the folder {folder} has no readable file: there is {there}. Readable are {', '.join(SUFFIXES)}."
        )
    return found


def _domain(path: Path, folder: Path | None) -> str:
    """The first folder below the source; else a one-document file's folder; else the file's name without its number."""
    if folder is not None and len(path.relative_to(folder).parts) > 1:
        return path.relative_to(folder).parts[0]
    if one_document(path):
        return path.resolve().parent.name
    stem = path.name[: -len(suffix_of(path) or "")]
    return re.sub(r"([-_.]\d+)?([-_.]of[-_.]\d+)?$", "", stem) or stem


def _read_hub(source: HubDataset) -> Iterator[Document]:
    """Stream a hub dataset.

    Raises:
        DataError: it cannot be opened or read, or a row has no text.
    """
    import datasets

    try:
        stream = datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=source.revision, streaming=True
        )
        rows = iter(stream)
    except Exception as error:  # datasets raises what its loaders and the network raise; the cause is kept
        raise _hub_error(source, error) from error
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as above
            raise _hub_error(source, error) from error
        number += 1
        yield Document(decoded(row, source.text_field, f"{HUB_PREFIX}{source.hub}, row {number}"), source.domain)


def _hub_error(source: HubDataset, error: Exception) -> DataError:
    """What to say when the hub does not give a dataset."""
    return DataError(
        f"the hub dataset {source.hub!r} (config {source.config}, split {source.split}, revision {source.revision}) "
        f"cannot be read: {type(error).__name__}: {error}. Check its name and the network, or give a local path."
    )
