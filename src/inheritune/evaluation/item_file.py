"""What one model made of some tasks, item by item, as a file: JSON lines under zstd, read back as it was."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from inheritune import runs
from inheritune.errors import EvaluationError
from inheritune.evaluation.harness import Item, Run
from inheritune.evaluation.scorer import Answer, Tally


def write_run(path: Path, run: Run) -> None:
    """Keep a run: a line on the whole, then one for each item."""
    head = {"tally": dataclasses.asdict(run.tally), "versions": dict(run.versions), "tasks": list(run.items)}
    lines = [head, *({"task": name, **_plain(item)} for name, items in run.items.items() for item in items)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    runs.write_bytes(path, zstandard.ZstdCompressor(write_checksum=True).compress(text.encode()))


def read_run(path: Path) -> Run:
    """The run that a file holds.

    Raises:
        EvaluationError: the file is damaged.
    """
    try:
        lines = _lines(path)
        head = next(lines)
        items: dict[str, list[Item]] = {name: [] for name in head["tasks"]}
        for line in lines:
            items[line.pop("task")].append(_item(line))
        return Run({name: tuple(each) for name, each in items.items()}, Tally(**head["tally"]), head["versions"])
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise EvaluationError(
            f"{path} is damaged: {type(error).__name__}: {error}. Delete it and run the same command, which "
            "scores its tasks again."
        ) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Its lines as values; zstd tells a torn end."""
    content = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    yield from map(json.loads, io.StringIO(content.decode()))


def _plain(item: Item) -> dict[str, Any]:
    """An item as plain values, without the copies that ``asdict`` makes."""
    return {each.name: getattr(item, each.name) for each in dataclasses.fields(item)}


def _item(plain: dict[str, Any]) -> Item:
    """An item out of plain values: JSON has lists where there were tuples."""
    plain["choices"], plain["truths"] = tuple(plain["choices"]), tuple(plain["truths"])
    plain["answers"] = tuple(Answer(*each) for each in plain["answers"])
    plain["metrics"] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain["metrics"].items()
    }
    return Item(**plain)
