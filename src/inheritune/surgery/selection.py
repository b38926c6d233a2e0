"""Which layers of the reference a child keeps. Pure."""

from collections.abc import Sequence
from itertools import pairwise

from inheritune.errors import SurgeryError


def parse_selection(layers: int | str | Sequence[int], depth: int) -> tuple[int, ...]:
    """The kept layers as increasing indices, counted from 0.

    Args:
        layers: a number n (the first n layers), the same as text, ``"half"`` (the first half, rounded up), or the
            increasing indices themselves.
        depth: layers of the reference.

    Raises:
        SurgeryError: it selects no layer, a layer that is not there, or is not understood.
    """
    if layers == "half":
        return tuple(range((depth + 1) // 2))
    if isinstance(layers, str):
        if not layers.strip().isdecimal():
            raise SurgeryError(
                f"the selection {layers!r} is not understood. Write a number of layers from 1 to {depth}, or 'half'."
            )
        layers = int(layers)
    if isinstance(layers, int):
        if isinstance(layers, bool) or not 1 <= layers <= depth:
            raise SurgeryError(
                f"cannot inherit {layers} layers from a reference that has {depth}. "
                f"Choose 1 to {depth}, or name a deeper reference."
            )
        return tuple(range(layers))
    chosen = tuple(layers)
    if not chosen or any(type(index) is not int or not 0 <= index < depth for index in chosen):
        raise SurgeryError(
            f"cannot inherit the layers {list(chosen)} from a reference that has {depth}. "
            f"Give one or more of the indices 0 to {depth - 1}."
        )
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise SurgeryError(
            f"the layers {list(chosen)} are not in increasing order. Write each once: {sorted(set(chosen))}."
        )
    return chosen


def is_prefix(layers: Sequence[int]) -> bool:
    """Whether the selection is the first layers, in order and without a hole."""
    return list(layers) == list(range(len(layers)))
