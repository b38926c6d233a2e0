"""Two engines on the same items: whether they ask the same, and whether they answer the same."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inheritune.errors import EvaluationError
from inheritune.evaluation.harness import Item, Run

TIE_NATS = 2e-4
"""Two best choices that differ by less may come out in either order."""


@dataclass(frozen=True)
class Disagreement:
    """An item on which the engines' best choices differ."""

    part: str
    document: str
    gap_nats: float
    """Between the two best choices, by the engine that is checked against."""


@dataclass(frozen=True)
class Agreement:
    """How far two engines agree."""

    items: int
    continuations: int
    largest_difference_nats: float
    """Of a log-probability."""
    largest_relative_difference: float
    """The same over the log-probability, since the longest are hundreds of nats."""
    same_answers: int
    """Items with the same best choice."""
    disagreements: tuple[Disagreement, ...]

    @property
    def holds(self) -> bool:
        """Nothing differs but ties."""
        return all(each.gap_nats <= TIE_NATS for each in self.disagreements)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "holds": self.holds}

    def table(self) -> str:
        """Lines for the terminal."""
        lines = [
            f"{self.continuations} continuations of {self.items} items by both engines: log-probabilities differ by at "
            f"most {self.largest_difference_nats:.1e} nats ({self.largest_relative_difference:.1e} of their size), "
            f"{self.same_answers} answers are the same"
        ]
        lines += [
            f"  {each.part}, document {each.document[:12]}: another answer, its two best choices are "
            f"{each.gap_nats:.1e} nats apart"
            for each in self.disagreements
        ]
        return "\n".join(lines)


def agreement(ours: Run, theirs: Run) -> Agreement:
    """Compare two runs of the same tasks by the same model.

    Raises:
        EvaluationError: they were not asked the same.
    """
    a = [item for items in ours.items.values() for item in items]
    b = [item for items in theirs.items.values() for item in items]
    if [item.question for item in a] != [item.question for item in b]:
        raise EvaluationError("the two engines were asked different things. Run both on the same tasks and items.")
    differences, relative, disagreements = [0.0], [0.0], []
    for mine, other in zip(a, b, strict=True):
        for left, right in zip(mine.answers, other.answers, strict=True):
            difference = abs(left.log_probability - right.log_probability)
            differences.append(difference)
            relative.append(difference / max(1.0, abs(right.log_probability)))
        if _best(mine) != _best(other):
            disagreements.append(Disagreement(mine.part, mine.document, _gap(other)))
    return Agreement(
        items=len(a),
        continuations=sum(len(item.answers) for item in a),
        largest_difference_nats=max(differences),
        largest_relative_difference=max(relative),
        same_answers=len(a) - len(disagreements),
        disagreements=tuple(disagreements),
    )


def _best(item: Item) -> int | bool:
    """The choice, or whether the one continuation is what the model would write."""
    if len(item.answers) == 1:
        return item.answers[0].is_greedy
    return int(np.argmax([answer.log_probability for answer in item.answers]))


def _gap(item: Item) -> float:
    """Nats between the two best choices; endless where there is one."""
    if len(item.answers) == 1:
        return float("inf")
    best = sorted(answer.log_probability for answer in item.answers)[-2:]
    return best[1] - best[0]
