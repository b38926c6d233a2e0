"""Where to begin: a start depth and a selection of layers, from what leaving each layer out costs. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.evaluation.statistics import Interval

SHARE = 0.90
"""Of what all layers cost when left out one by one, the part that the start must hold; as rank and mass do."""


@dataclass(frozen=True)
class Suggestion:
    """A start that has not been trained: a place to begin a search from, not its result."""

    depth: int
    layers: tuple[int, ...]
    """Of the reference, in order."""
    reason: str


def suggest(costs: Sequence[Interval]) -> Suggestion:
    """The fewest layers that hold ``SHARE`` of what leaving out single layers costs, the costliest first.

    Args:
        costs: loss without each layer minus the whole model's, in nats per token; what is below 0 counts as 0.
    """
    by_cost = sorted(range(len(costs)), key=lambda layer: (-costs[layer].mean, layer))
    worth = [max(0.0, costs[layer].mean) for layer in by_cost]
    total = sum(worth)
    depth, held = 1, worth[0]
    while depth < len(costs) and held < SHARE * total:
        held += worth[depth]
        depth += 1
    layers = tuple(sorted(by_cost[:depth]))
    if not total:
        reason = "no layer costs anything when left out, so one layer is as good a start as any other"
        return Suggestion(depth, layers, reason)
    reason = (
        f"the {depth} costliest of {len(costs)} layers hold {held / total:.0%} of what leaving out single layers costs "
        f"({SHARE:.0%} are asked for)"
    )
    rest = by_cost[depth:]
    if rest:
        cheapest = rest[-1]
        each = costs[cheapest]
        reason += f"; the cheapest is layer {cheapest} ({each.mean:+.4f} nats [{each.low:+.4f}, {each.high:+.4f}])"
    useless = [layer for layer in sorted(rest) if costs[layer].high <= 0]
    if useless:
        reason += f"; without layer {', '.join(map(str, useless))} the loss is not higher"
    return Suggestion(depth, layers, reason)
