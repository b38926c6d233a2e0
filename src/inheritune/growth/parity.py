"""The decision at the end of a round."""

from typing import Literal

from inheritune.evaluation.statistics import Interval

Verdict = Literal["better", "parity", "not shown"]


def decide(interval: Interval, margin: float) -> Verdict:
    """What an interval of child minus reference (nats per token) shows.

    ``better``: the whole interval is at or below zero. ``parity``: the whole interval is at or below ``margin``.
    ``not shown``: neither; the child may be worse by more than the margin.
    """
    if interval.high <= 0:
        return "better"
    return "parity" if interval.high <= margin else "not shown"
