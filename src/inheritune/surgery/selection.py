"""Which layers of the reference a child keeps: what was asked, for a reference of a known depth. Pure."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from inheritune.errors import SurgeryError
from inheritune.selection_words import SelectionWords, Span, parse_selection_words

Scores = Mapping[int, float]
"""Layer of the reference -> its score; the higher, the more important."""


def parse_selection(layers: int | str | Sequence[int], depth: int, scores: Scores | None = None) -> tuple[int, ...]:
    """The kept layers as increasing indices, counted from 0.

    Args:
        layers: a number n (the first n layers), increasing indices, or text: ``12`` (the same as the number), ``half``
            (the first half, rounded up), ``last-12``, ``every-2`` (0, 2, 4, ...), ``spread-12`` (evenly, the first and
            the last among them), ``0-5,8,-1`` (both ends included, below 0 counted from the end), ``drop 20-27`` (all
            but these), ``best-12 FILE`` (those of the highest scores; of equal ones the earlier).
        depth: layers of the reference.
        scores: what the file of ``best-12 FILE`` holds; the file itself is read by ``surgery.scores``.

    Raises:
        SurgeryError: it selects no layer, a layer that is not there, is not in order, or is not understood.
    """
    if isinstance(layers, str):
        try:
            words = parse_selection_words(layers)
        except ValueError as error:
            raise SurgeryError(f"{error}. The reference has {depth} layers.") from error
        return _meaning(words, layers.strip(), depth, scores)
    if isinstance(layers, int):
        return tuple(range(_count(layers, depth)))
    chosen = tuple(layers)
    if not chosen or any(type(index) is not int or not 0 <= index < depth for index in chosen):
        raise SurgeryError(
            f"cannot inherit the layers {list(chosen)} from a reference that has {depth}. Give one or more of the "
            f"indices 0 to {depth - 1}; from the end they are counted in text, as layers='0-1,-1'."
        )
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise SurgeryError(
            f"the layers {list(chosen)} are not in increasing order. Write each once: {sorted(set(chosen))}."
        )
    return chosen


def _meaning(words: SelectionWords, text: str, depth: int, scores: Scores | None) -> tuple[int, ...]:
    """The indices that a selection in words stands for."""
    match words.kind:
        case "half":
            return tuple(range((depth + 1) // 2))
        case "first":
            return tuple(range(_count(words.number, depth)))
        case "last":
            return tuple(range(depth - _count(words.number, depth), depth))
        case "every":
            if words.number < 1:
                raise SurgeryError(f"{text!r} has no step. Write every-1 (all {depth} layers), every-2 or more.")
            return tuple(range(0, depth, words.number))
        case "spread":
            return _spread(_count(words.number, depth), depth)
        case "best":
            return _best(_count(words.number, depth), depth, words.file, scores)
        case "keep":
            return _indices(words.spans, text, depth)
        case "drop":
            dropped = set(_indices(words.spans, text, depth, before="drop "))
            if len(dropped) == depth:
                raise SurgeryError(
                    f"{text!r} leaves none of the {depth} layers of the reference. Drop at most {depth - 1} of them."
                )
            return tuple(index for index in range(depth) if index not in dropped)


def _count(number: int, depth: int) -> int:
    """A number of layers that the reference has."""
    if isinstance(number, bool) or not 1 <= number <= depth:
        raise SurgeryError(
            f"cannot inherit {number} layers from a reference that has {depth}. "
            f"Choose 1 to {depth}, or name a deeper reference."
        )
    return number


def _spread(number: int, depth: int) -> tuple[int, ...]:
    """Evenly spaced, rounded to the nearest (a half upwards), with the first and the last layer."""
    if number == 1 < depth:
        raise SurgeryError(
            f"spread-1 cannot keep both the first and the last of {depth} layers. Write spread-2 or more; "
            "for one layer its index twice, as 0-0."
        )
    gaps = max(number - 1, 1)
    return tuple((2 * place * (depth - 1) + gaps) // (2 * gaps) for place in range(number))


def _best(number: int, depth: int, file: str, scores: Scores | None) -> tuple[int, ...]:
    """The layers of the highest scores, in their order in the reference."""
    if scores is None:
        raise SurgeryError(
            f"'best-{number} {file}' needs the scores of that file. Read them with surgery.scores.scores_for first."
        )
    absent = sorted(set(range(depth)) - set(scores))
    others = sorted(set(scores) - set(range(depth)))
    if absent or others:
        fault = f"has no score for layer {absent[0]}" if absent else f"scores a layer {others[0]}"
        raise SurgeryError(
            f"{file} {fault}, and the reference has the layers 0 to {depth - 1}. Give each of them one score, "
            "or name the file that was made for this reference."
        )
    ranked = sorted(range(depth), key=lambda index: (-scores[index], index))
    return tuple(sorted(ranked[:number]))


def _indices(spans: Sequence[Span], text: str, depth: int, before: str = "") -> tuple[int, ...]:
    """The indices that the spans name, counted from 0.

    Raises:
        SurgeryError: one is not there, or they do not increase; says what to write.
    """
    counted: list[Span] = []
    for first, last in spans:
        for index in (first, last):
            if not -depth <= index < depth:
                raise SurgeryError(
                    f"{text!r} names layer {index}, and the reference has {depth}: "
                    f"0 to {depth - 1}, or -{depth} to -1 counted from the end. Name only these."
                )
        counted.append((first % depth, last % depth))
    if any(first > last for first, last in counted) or any(
        later <= last for (_, last), (later, _) in pairwise(counted)
    ):
        named = {index for span in counted for index in range(min(span), max(span) + 1)}
        raise SurgeryError(
            f"the layers of {text!r} are not in increasing order (of {depth}, from 0: "
            f"{', '.join(_span_words(span) for span in counted)}). Write each once: {before}{in_words(sorted(named))}."
        )
    return tuple(index for first, last in counted for index in range(first, last + 1))


def in_words(layers: Sequence[int]) -> str:
    """A selection as it can be written, such as ``0-5,8``; ``parse_selection`` reads it back."""
    written = ",".join(_span_words((first, last)) for _, _, first, last in _runs(layers))
    return f"{written}-{written}" if written.isdecimal() else written  # a number alone means so many first layers


def selection_table(layers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Layer of the child and the layer of the reference that it was, for each layer of the child."""
    return tuple(enumerate(layers))


def show_selection(layers: Sequence[int]) -> str:
    """The same as lines of text, a line for each stretch of the reference without a hole."""
    rows = [(_span_words((start, end)), _span_words((first, last))) for start, end, first, last in _runs(layers)]
    heads = ("layer of the child", "layer of the reference")
    return "\n".join(f"{child:<{len(heads[0])}}  {reference}".rstrip() for child, reference in (heads, *rows))


def _span_words(span: Span) -> str:
    first, last = span
    return str(first) if first == last else f"{first}-{last}"


def _runs(layers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Each stretch without a hole: first and last index in the child, first and last in the reference."""
    runs: list[tuple[int, int, int, int]] = []
    for place, index in enumerate(layers):
        if runs and runs[-1][3] == index - 1:
            start, _, first, _ = runs.pop()
            runs.append((start, place, first, index))
        else:
            runs.append((place, place, index, index))
    return runs


def is_prefix(layers: Sequence[int]) -> bool:
    """Whether the selection is the first layers, in order and without a hole."""
    return list(layers) == list(range(len(layers)))
