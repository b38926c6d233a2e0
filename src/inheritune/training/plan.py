"""What a stage is to do, in whole steps, and what it has done."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError
from inheritune.training.schedule import Schedule


@dataclass(frozen=True)
class LoopPlan:
    """What one stage does, in whole steps."""

    stage: str
    """Its name in ``metrics.jsonl``."""
    label: str
    """Its name on the terminal."""
    schedule: Schedule
    """Steps and learning rates."""
    batch_sequences: int
    """Rows of one optimiser step."""
    sequence_length: int
    """Tokens per row."""
    target_nats: float | None
    """Watch loss to be reached, for the eye only; nothing is decided by it."""
    look_before_cooldown: bool = False
    """Score the watch half where the cool-down begins, too."""
    moments_from: Path | None = None
    """Checkpoint whose moments and place in the data a stage without a checkpoint of its own begins with."""
    seed: int = 0
    """Of dropout."""
    lr_scale: Callable[[str], float] = lambda name: 1.0
    """Learning rate of a parameter, by name, relative to the schedule's."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the stage."""
        return self.schedule.num_steps

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_sequences * self.sequence_length

    def looks(self, validations: int) -> set[int]:
        """Steps done at which the watch half is scored."""
        steps = {round(i * self.num_steps / validations) for i in range(validations + 1)}
        opened = self.schedule.open_step
        return steps | {opened} if self.look_before_cooldown and opened is not None else steps


@dataclass(frozen=True)
class LoopResult:
    """What a finished stage has done."""

    steps: int
    tokens: int
    elapsed_s: float
    """Seconds of training, validation and saving included, all starts added."""
    start_watch_nats: float
    """Watch loss before the first step."""
    watch_nats: float
    """Watch loss after the last step."""
    peak_memory_bytes: int
    """Of the process that finished the stage."""
    skipped: int = 0
    """Steps whose update was left out."""
    average_watch_nats: float | None = None
    """Watch loss of the weight average, where one was kept."""
    open_watch_nats: float | None = None
    """Watch loss before the cool-down, where it was looked at."""
    discarded_tokens: int = 0
    """Tokens of steps that were undone, by an extension (cool-downs) or by rewinding; they were paid for, too."""
    discarded_s: float = 0.0
    """Seconds of the same."""

    @property
    def spent_tokens(self) -> int:
        """Tokens that the stage has cost."""
        return self.tokens + self.discarded_tokens

    @property
    def spent_s(self) -> float:
        """Seconds that the stage has cost."""
        return self.elapsed_s + self.discarded_s

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan_steps(num_tokens: int, *, batch_tokens: int, sequence_length: int) -> tuple[int, int]:
    """Optimiser steps, and rows per step, that spend at most ``num_tokens``.

    A batch is rounded down to whole rows. It is made smaller still where whole batches of the size asked for would
    leave more of the budget unspent: 250 rows in batches of 128 are 2 steps of 125 rows, not 1 of 128.

    Raises:
        DataError: the tokens do not fill one row.
    """
    rows = num_tokens // sequence_length
    if rows < 1:
        raise DataError(
            f"{num_tokens} tokens do not fill one row of {sequence_length}. "
            "Raise the token budget (data.token_budget), or lower the sequence length (data.sequence_length)."
        )
    asked = min(max(1, batch_tokens // sequence_length), rows)
    fewer, more = rows // asked, -(-rows // asked)
    smaller = rows // more
    return (more, smaller) if more * smaller > fewer * asked else (fewer, asked)
