"""A search under way, and what it has found so far: plain values."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inheritune import runs
from inheritune.data.shards import Shards
from inheritune.evaluation.harness import Run as Answers
from inheritune.evaluation.statistics import Interval, token_mean
from inheritune.machine.stop import StopRequest
from inheritune.recipe import Recipe
from inheritune.training.plan import LoopResult
from inheritune.training.sinks import Progress

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A search under way: what was asked, where it is kept, and how it is stopped and shown."""

    recipe: Recipe
    folder: Path
    stop: StopRequest
    progress: Progress

    def event(self, stage: str | None, kind: str, message: str) -> None:
        """Keep a decision, once however often the run is started, and say it."""
        if not runs.has_event(self.folder, stage, kind, message):
            runs.record_event(self.folder, stage, kind, message)
        self.progress.say(message)

    def stage(self, name: str) -> Path:
        """Folder of one stage."""
        return self.folder / "stages" / name

    def round_tokens(self, shards: Shards) -> int:
        """Tokens that a round trains on."""
        return (self.recipe.data.token_budget or shards.sequence("train").num_tokens) * self.recipe.train.passes


@dataclass(frozen=True)
class Scored:
    """A model with its scores on both validation halves."""

    model: Path
    depth: int
    parameters: int
    decide: Sums
    """float64 (documents, 2): nats, tokens; the half that verdicts are made on."""

    @property
    def loss_nats(self) -> float:
        """Token-weighted loss on the decide half."""
        return token_mean(self.decide)


@dataclass(frozen=True)
class Round:
    """One finished round."""

    stage: str
    child: Scored
    loop: LoopResult
    interval: Interval
    """Child minus target, nats per token."""
    verdict: str


@dataclass(frozen=True)
class Found:
    """What a finished search has found."""

    reference: Scored
    reference_watch_nats: float
    reference_tokens: int | None
    """Tokens that the reference itself was trained on, where that is known."""
    shards: Shards
    rounds: list[Round]
    baselines: dict[str, tuple[Scored, LoopResult]]
    stopped_because: str
    answers: dict[str, Answers]
    """Stage -> what its model made of the tasks, the reference first; empty where none were asked for."""

    @property
    def child(self) -> Round:
        """The last round: the child of this search."""
        return self.rounds[-1]
