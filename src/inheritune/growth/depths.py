"""Which depth comes next."""

from collections.abc import Sequence

from inheritune.errors import RecipeError


def depth_schedule(
    reference_depth: int, *, start: int, step: int, max_depth: int | None, begun: Sequence[int] = ()
) -> list[int]:
    """Depths of the rounds, in order: start, start + step, ..., and ``max_depth`` itself at the end.

    Args:
        reference_depth: layers of the reference.
        start: layers of the first child.
        step: layers added per round.
        max_depth: the deepest child; None is the reference's depth minus 1.
        begun: depths of the rounds that were begun before; they stay, and the others follow the last of them.

    Raises:
        RecipeError: the depths do not fit the reference, or what was begun.
    """
    deepest = max(1, reference_depth - 1) if max_depth is None else max_depth
    if not 1 <= start <= reference_depth:
        raise RecipeError(
            f"growth starts at depth {start}, and the reference has {reference_depth} layers. "
            f"Set growth.start_depth from 1 to {reference_depth}."
        )
    if not start <= deepest <= reference_depth:
        raise RecipeError(
            f"growth.max_depth is {deepest}, growth starts at depth {start} and the reference has "
            f"{reference_depth} layers. Set growth.max_depth from {start} to {reference_depth}."
        )
    if not begun:
        return [*range(start, deepest, step), deepest]
    if begun[-1] > deepest:
        raise RecipeError(
            f"growth.max_depth is {deepest}, and this run has begun a child of {begun[-1]} layers. "
            f"Set growth.max_depth from {begun[-1]} to {reference_depth}, or start over with --fresh."
        )
    following = [*range(begun[-1] + step, deepest, step), deepest] if begun[-1] < deepest else []
    return [*begun, *following]
