"""Learning rates as a pure function of the step."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from inheritune.recipe import TrainRecipe


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every optimiser step of a stage, in whole steps.

    Warm-up is linear and reaches ``peak`` at its last step. ``wsd`` then holds the peak and cools down by
    1 - sqrt(progress) over the last ``cooldown_steps``; ``cosine`` falls to a tenth of the peak.

    Source: arXiv:2405.18392 (WSD with a 1-sqrt cool-down).
    """

    kind: str
    """"wsd" or "cosine"."""
    peak: float
    num_steps: int
    warmup_steps: int
    cooldown_steps: int
    """0 for cosine."""

    @property
    def open_step(self) -> int | None:
        """Steps done where training can branch: before the cool-down. None for cosine, which has no such place."""
        return self.num_steps - self.cooldown_steps if self.kind == "wsd" else None

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
            return self.peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
        into_cooldown = step - (self.num_steps - self.cooldown_steps)
        if into_cooldown < 0:
            return self.peak
        return self.peak * (1 - math.sqrt((into_cooldown + 1) / (self.cooldown_steps + 1)))

    def extended(self, num_steps: int, cooldown_fraction: float) -> "Schedule":
        """The same rise and peak, held longer, with a cool-down that fits the new length."""
        return Schedule(self.kind, self.peak, num_steps, self.warmup_steps, round(cooldown_fraction * num_steps))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan_schedule(recipe: TrainRecipe, num_steps: int) -> Schedule:
    """The schedule that a recipe's fractions give for so many steps."""
    cooldown = round(recipe.cooldown_fraction * num_steps) if recipe.schedule == "wsd" else 0
    warmup = round(recipe.warmup_fraction * num_steps)
    return Schedule(recipe.schedule, recipe.peak_lr, num_steps, warmup, cooldown)
