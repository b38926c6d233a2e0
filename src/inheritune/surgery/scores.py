"""A file of scores, one for each layer of the reference: which layers matter most, as somebody has measured it."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.selection_words import parse_selection_words
from inheritune.surgery.selection import Scores

COLUMNS = ("layer", "score")
"""The columns of a CSV file that are read, by its header; there may be others."""

FORMS = (
    "Give a .csv file with a header that names the columns layer and score, or a .json file with a list of scores or "
    "an object from layer to score; layers count from 0, the highest scores are kept"
)


def scores_for(layers: int | str | Sequence[int]) -> Scores | None:
    """The scores that a selection names (``best-12 FILE``); None for every other selection.

    Raises:
        SurgeryError: the file cannot be read, or does not hold one finite number for each of its layers.
    """
    if not isinstance(layers, str):
        return None
    try:
        words = parse_selection_words(layers)
    except ValueError:
        return None  # what is not understood is refused with the depth
    return read_scores(Path(words.file)) if words.kind == "best" else None


def read_scores(path: Path) -> Scores:
    """Layer -> score from a file of CSV or JSON, told by its name.

    Raises:
        SurgeryError: the file cannot be read, names a layer twice, or holds something else than finite numbers.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise SurgeryError(f"the file of scores {path} is neither .csv nor .json by its name. {FORMS}.")
    if not path.is_file():
        raise SurgeryError(f"there is no file of scores {path}. Check the path; {FORMS[0].lower()}{FORMS[1:]}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = list(_from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise SurgeryError(f"the file of scores {path} cannot be used: {error}. {FORMS}.") from error
    scores: dict[int, float] = {}
    for layer, score in pairs:
        if layer in scores:
            raise SurgeryError(f"{path} scores layer {layer} twice. Leave one of the two out.")
        if not math.isfinite(score):
            raise SurgeryError(
                f"{path} gives layer {layer} the score {score}, which has no rank. Give every layer a finite number."
            )
        scores[layer] = score
    return scores


def _from_csv(text: str) -> Iterator[tuple[int, float]]:
    """Pairs of layer and score, row by row.

    Raises:
        ValueError: a column is missing, or a row has no number where one is needed; says which.
    """
    rows = csv.reader(io.StringIO(text))
    header = [name.strip().lower() for name in next(rows, [])]
    for column in COLUMNS:
        if header.count(column) != 1:
            raise ValueError(f"its header names the columns {', '.join(header) or 'none'}, and not {column!r} once")
    places = [header.index(column) for column in COLUMNS]
    for number, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(places):
            raise ValueError(f"row {number} has {len(row)} of {len(header)} columns")
        yield _layer(row[places[0]], f"row {number}"), _score(row[places[1]], f"row {number}")


def _from_json(text: str) -> Iterator[tuple[int, float]]:
    """Pairs of layer and score from a list in the order of the layers, or from an object with the layers as keys.

    Raises:
        ValueError: it is neither, or an entry is no number.
    """
    value = json.loads(text, object_pairs_hook=list)  # a list of pairs, so that a key that occurs twice is seen
    is_object = text.lstrip().startswith("{")
    if not isinstance(value, list):
        raise ValueError("it is neither a list nor an object")
    for place, entry in enumerate(value):
        layer, score = (_layer(entry[0], f"key {entry[0]!r}"), entry[1]) if is_object else (place, entry)
        yield layer, _score(score, f"layer {layer}")


def _layer(value: Any, where: str) -> int:
    text = str(value).strip()
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise ValueError(f"{where} names the layer {value!r}, which is no whole number from 0")
    return int(text)


def _score(value: Any, where: str) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{where} has the score {value!r}, which is no number")
