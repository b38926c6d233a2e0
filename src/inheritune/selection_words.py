"""What can be written of which layers to keep, read without knowing how many there are. No torch in here.

A recipe and the command line are checked with it at once; ``surgery.selection`` gives the words their meaning for a
reference of a known depth.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["first", "half", "last", "every", "spread", "best", "keep", "drop"]

Span = tuple[int, int]
"""First and last index, both included; below 0 counted from the end."""

WORDS = "half, last-4, every-2, spread-4, 0-5,8,-1, 'drop 2-5' or 'best-4 SCORES_FILE' (.csv or .json)"
"""The forms beside a plain number, as an error shows them."""

NUMBERED = re.compile(r"(last|every|spread)-([0-9]{1,9})")
BEST = re.compile(r"best-([0-9]{1,9})\s+(\S.*)")
DROP = re.compile(r"drop\s+(\S.*)")
SPAN = re.compile(r"\s*(-?[0-9]{1,9})(?:-(-?[0-9]{1,9}))?\s*")


@dataclass(frozen=True)
class SelectionWords:
    """A selection as it was written.

    Attributes:
        kind: ``first`` n layers, the first ``half``, the ``last`` n, ``every`` n-th, ``spread`` evenly, the ``best`` n
            of a file of scores, or spans of indices to ``keep`` or to ``drop``.
        number: n, where there is one.
        spans: of ``keep`` and ``drop``, as they were written.
        file: of ``best``.
    """

    kind: Kind
    number: int = 0
    spans: tuple[Span, ...] = ()
    file: str = ""


def parse_selection_words(text: str) -> SelectionWords:
    """Read ``12``, ``half``, ``last-12``, ``every-2``, ``spread-12``, ``0-5,8,-1``, ``drop 20-27``, ``best-12 FILE``.

    Raises:
        ValueError: it is none of them; says what to write.
    """
    words = text.strip()
    if words == "half":
        return SelectionWords("half")
    if re.fullmatch(r"[0-9]{1,9}", words):
        return SelectionWords("first", int(words))
    if match := NUMBERED.fullmatch(words):
        kind: Kind = match[1]  # type: ignore[assignment]
        return SelectionWords(kind, int(match[2]))
    if match := BEST.fullmatch(words):
        return SelectionWords("best", int(match[1]), file=match[2])
    dropped = DROP.fullmatch(words)
    spans = _spans(dropped[1] if dropped else words)
    if spans:
        return SelectionWords("drop" if dropped else "keep", spans=spans)
    if words == "drop":
        raise ValueError("'drop' is followed by the layers to leave out, in one pair of quotes: 'drop 2-5'")
    if re.fullmatch(r"best-[0-9]+", words):
        raise ValueError(f"{words!r} is followed by the file of scores, in one pair of quotes: '{words} scores.csv'")
    raise ValueError(f"{text!r} is no selection of layers. Write a number of first layers, {WORDS}")


def _spans(text: str) -> tuple[Span, ...] | None:
    """Spans between commas; None where the text is something else."""
    matches = [SPAN.fullmatch(part) for part in text.split(",")]
    if not all(matches):
        return None
    return tuple((int(match[1]), int(match[2] or match[1])) for match in matches if match)
