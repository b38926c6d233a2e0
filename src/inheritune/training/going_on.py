"""Going on with a stage that was begun: what it has left, what may change, and how it is trained on more tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.data.batches import Position
from inheritune.errors import RecipeError
from inheritune.training.checkpoint import drop_after, find_checkpoint, read_state, require_whole, verifies
from inheritune.training.plan import LoopResult
from inheritune.training.settings import FILE as SETTINGS
from inheritune.training.settings import Settings, changes, extended, passes_with


@dataclass(frozen=True)
class TrainResult:
    """A finished stage."""

    model: Path
    """Hugging Face folder of the trained model, float32."""
    loop: LoopResult
    average: Path | None = None
    """Hugging Face folder of the weight average, where one was kept."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        average = {"average": str(self.average)} if self.average else {}
        return {"model": str(self.model), **self.loop.to_json(), **average}


def read_result(stage_folder: Path) -> TrainResult | None:
    """What a finished stage left behind; None where it is not finished, or is to be trained on more tokens."""
    path, settings = stage_folder / "result.json", Settings.load(stage_folder)
    if settings is None or not path.exists():
        return None
    loop = LoopResult(**runs.read_json(path))
    if loop.steps != settings.schedule.num_steps:  # an extension has more
        return None
    average = stage_folder / "average"
    return TrainResult(stage_folder / "model", loop, average if average.exists() else None)


def open_checkpoint(stage_folder: Path) -> Path:
    """Where the checkpoint from before a stage's cool-down is, or was: on it training can go on.

    Raises:
        RecipeError: the stage was never begun, or has no such place (cosine).
    """
    settings = Settings.load(stage_folder)
    if settings is None or settings.schedule.open_step is None:
        raise RecipeError(f"{stage_folder} has no state from before a cool-down. Train it with train.schedule: wsd.")
    return stage_folder / "checkpoints" / f"step-{settings.schedule.open_step:08d}"


def go_on(
    before: Settings,
    asked: Settings,
    then: str,
    stage_folder: Path,
    moments_from: Path | None,
    tell: Callable[[str, str], None],
) -> Settings:
    """The settings that an earlier start is gone on with; an extension takes the stage back to before its cool-down.

    Raises:
        RecipeError: what is asked is not what was begun, nor more of it.
    """
    changed = changes(before, asked, then, stage_folder)
    _drop_other_branches(before, stage_folder)
    if not changed.extends:
        return replace(before, recipe=asked.recipe)
    settings = _extend(before, asked, stage_folder, moments_from, tell)
    _drop_other_branches(settings, stage_folder)
    return settings


def _drop_other_branches(settings: Settings, stage_folder: Path) -> None:
    """Delete checkpoints of a cool-down that was thrown away, which a kill may have left."""
    if settings.branched_at is not None:
        drop_after(stage_folder / "checkpoints", settings.branched_at, unless_of=settings.schedule.num_steps)


def _extend(
    before: Settings,
    asked: Settings,
    stage_folder: Path,
    moments_from: Path | None,
    tell: Callable[[str, str], None],
) -> Settings:
    """Write down that the stage is to be trained on more tokens, and where it goes on.

    Raises:
        RecipeError: the state from before the cool-down is gone.
    """
    opened, result = before.schedule.open_step, read_result(stage_folder)
    newest = find_checkpoint(stage_folder / "checkpoints", lambda message: tell("damaged", message))
    state = read_state(newest) if newest else None
    steps_done, elapsed_s, rewound = (state.step, state.elapsed_s, state.rewound_tokens) if state else (0, 0.0, 0)
    if result:
        steps_done, elapsed_s = result.loop.steps, result.loop.elapsed_s
        rewound = result.loop.discarded_tokens - before.discarded_tokens
    assert opened is not None
    settings = before
    if result or steps_done > opened:
        kept = open_checkpoint(stage_folder)
        if not verifies(kept):
            raise RecipeError(
                f"{stage_folder} cannot be trained on more tokens: its checkpoint of step {opened}, from before the "
                "cool-down, is gone. Start over with --fresh (from Python: resume=False), or choose another folder."
            )
        state = read_state(kept)
        settings = replace(
            before,
            discarded_tokens=before.discarded_tokens
            + (steps_done - opened) * before.batch_sequences * before.sequence_length
            + rewound
            - state.rewound_tokens,
            discarded_s=before.discarded_s + elapsed_s - state.elapsed_s,
        )
    position = state.position if state else Position(0, 0)
    if state is None and moments_from:
        require_whole(moments_from)
        position = read_state(moments_from).position
    settings = extended(settings, asked, position)
    if settings.schedule.num_steps <= before.schedule.num_steps:
        return replace(before, recipe=asked.recipe)  # more tokens, and not one whole step more
    recipe = {**before.recipe, "passes": asked.recipe["passes"]}  # the rest is taken over where training begins
    settings = replace(settings, recipe=recipe, branched_at=state.step if state else 0)
    runs.write_json(stage_folder / SETTINGS, settings.to_json())  # from here on the former result is not this stage's
    (stage_folder / "result.json").unlink(missing_ok=True)
    tell(
        "extended",
        f"{stage_folder.name} goes on from step {settings.branched_at}, before its cool-down, to "
        f"{settings.schedule.num_steps} steps (was {before.schedule.num_steps})",
    )
    return settings


def change_micro_batch(before: Settings, asked: Settings, probe: Path, tell: Callable[[str, str], None]) -> None:
    """Put a new micro-batch into the recorded choices; the batches stay what they were."""
    size = asked.recipe["micro_batch"]
    if size == before.recipe["micro_batch"] or not probe.exists():
        return
    choices = runs.read_json(probe)
    if size == "auto":
        tell("note", f"micro-batch auto keeps the {choices['micro_batch']} that the stage has")
        return
    runs.write_json(probe, {**choices, "micro_batch": min(size, before.batch_sequences)})
    tell("note", f"micro-batch {size} from here on: the same rows a step, whose sums are rounded otherwise")


def passes_before(moments_from: Path | None, budget: int) -> tuple[tuple[int, int], ...] | None:
    """The passes of the stage that a checkpoint belongs to: its place in the data is a place in them."""
    settings = Settings.load(moments_from.parent.parent) if moments_from else None
    if moments_from is None or settings is None:
        return None
    if budget <= settings.budget_tokens or not (moments_from / "state.json").exists():
        return settings.passes
    return passes_with(settings.passes, read_state(moments_from).position, budget)
