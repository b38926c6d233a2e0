"""What defines a stage, written before it trains; what differs at a later start is allowed, more, or refused."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.data.batches import Position
from inheritune.errors import RecipeError
from inheritune.recipe import KEEPING_KEYS, TrainRecipe
from inheritune.training.schedule import Schedule

FILE = "settings.json"

FREE = {key.removeprefix("train.") for key in KEEPING_KEYS}
"""Keys of the train part that may change at any start."""

START_OVER = "Choose another folder, or start over with --fresh (from Python: resume=False)."


@dataclass(frozen=True)
class Settings:
    """Everything that a stage's result depends on, beside the machine."""

    model: str
    """What it starts from, by content."""
    teacher: str | None
    """What it is distilled from, by content."""
    moments_from: str | None
    """The checkpoint whose moments it begins with, by content."""
    validation: str
    """SHA-256 of the validation shards."""
    shards: str
    """SHA-256 of the training tokens of one pass; it changes where the budget is raised."""
    recipe: dict[str, Any]
    """The train part."""
    fresh_layers: list[int] | str
    """Layers that were not inherited; "all" for a model that starts at random."""
    sequence_length: int
    seed: int
    budget_tokens: int
    """Tokens of one pass."""
    total_tokens: int
    """Tokens to train on, at most."""
    batch_sequences: int
    schedule: Schedule
    passes: tuple[tuple[int, int], ...]
    """Training tokens [begin, end) whose documents each pass goes over, from the first that begins there; the last
    serves all that follow."""
    discarded_tokens: int = 0
    """Of cool-downs that an extension threw away."""
    discarded_s: float = 0.0
    branched_at: int | None = None
    """Step from which an extension went on; checkpoints beyond it that were made before are of another branch."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``settings.json``."""
        return asdict(self)

    @classmethod
    def load(cls, stage_folder: Path) -> "Settings | None":
        """What the stage was begun with; None where it was not begun.

        Raises:
            RecipeError: the file is damaged.
        """
        path = stage_folder / FILE
        if not path.exists():
            return None
        try:
            value = runs.read_json(path)
            schedule = Schedule(**value["schedule"])
            passes = tuple((int(begin), int(end)) for begin, end in value["passes"])
            recipe = {**TrainRecipe().model_dump(mode="json"), **value["recipe"]}  # keys that came after it was begun
            return cls(**{**value, "recipe": recipe, "schedule": schedule, "passes": passes})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"{path} is damaged or of another version ({error}), so it is not known what {stage_folder} was made "
                f"by. Restore it. {START_OVER}"
            ) from error


@dataclass(frozen=True)
class Changes:
    """What differs between what a stage was begun with and what is asked now."""

    allowed: tuple[str, ...]
    """Differences that change no weight, or only from here on, as ``key: old -> new``."""
    extends: bool
    """Whether more tokens are asked for."""


def changes(before: Settings, asked: Settings, then: str, stage_folder: Path) -> Changes:
    """Compare; a stage that cannot become what is asked is refused with everything that differs.

    Args:
        before: what the stage was begun with.
        asked: what is asked now.
        then: SHA-256 of as many training tokens as the stage was begun with, in the shards of now.
        stage_folder: for the message.

    Raises:
        RecipeError: something differs that may not.
    """
    old, new = before.to_json(), asked.to_json()
    recipe = {
        key: (before.recipe.get(key), asked.recipe.get(key)) for key in dict.fromkeys([*before.recipe, *asked.recipe])
    }
    differing = {key: pair for key, pair in recipe.items() if pair[0] != pair[1]}
    fixed = ("model", "teacher", "moments_from", "validation", "fresh_layers", "sequence_length", "seed")
    refused = {key: (old[key], new[key]) for key in fixed if json.dumps(old[key]) != json.dumps(new[key])}
    refused |= {key: pair for key, pair in differing.items() if key not in FREE and key != "passes"}
    if asked.recipe["passes"] < before.recipe["passes"]:
        refused["passes"] = differing["passes"]
    more = asked.total_tokens > before.total_tokens
    if asked.total_tokens < before.total_tokens:
        refused["total_tokens"] = (before.total_tokens, asked.total_tokens)
    if asked.budget_tokens < before.budget_tokens:
        refused["budget_tokens"] = (before.budget_tokens, asked.budget_tokens)
    if before.shards != then:
        refused["shards"] = (before.shards, then)
    if refused:
        listed = "; ".join(f"{key}: {json.dumps(was)} -> {json.dumps(now)}" for key, (was, now) in refused.items())
        raise RecipeError(f"{stage_folder} was made by other settings ({listed}). {START_OVER}")
    if more and before.schedule.open_step is None:
        raise RecipeError(
            f"{stage_folder} was trained by a cosine schedule, which ends where it was planned to: it cannot go on "
            f"from {before.total_tokens} to {asked.total_tokens} tokens. Use train.schedule: wsd from the start. "
            f"{START_OVER}"
        )
    allowed = {key: pair for key, pair in differing.items() if key in FREE}
    if more:
        allowed["tokens"] = (before.total_tokens, asked.total_tokens)
    return Changes(tuple(f"{key}: {was} -> {now}" for key, (was, now) in allowed.items()), more)


def extended(before: Settings, asked: Settings, position: Position) -> Settings:
    """The stage as it was begun, to be trained on more tokens.

    Rise and peak stay; the peak is held longer and the cool-down fits the new length.

    Args:
        before: what it was begun with, or extended to.
        asked: what is asked now.
        position: in the data, from which it goes on.
    """
    num_steps = asked.total_tokens // (before.batch_sequences * before.sequence_length)
    return replace(
        before,
        recipe=asked.recipe,
        shards=asked.shards,
        budget_tokens=asked.budget_tokens,
        total_tokens=asked.total_tokens,
        schedule=before.schedule.extended(num_steps, asked.recipe["cooldown_fraction"]),
        passes=passes_with(before.passes, position, asked.budget_tokens),
    )


def passes_with(passes: tuple[tuple[int, int], ...], position: Position, budget: int) -> tuple[tuple[int, int], ...]:
    """The passes under a larger budget, from some position on: nothing that was gone through is reshuffled.

    The pass under way is finished; then comes the text that was in none so far, then everything, again and again.
    """
    begun = position.pass_index + (1 if position.row else 0)
    kept = [passes[min(index, len(passes) - 1)] for index in range(begun)]
    seen = max((end for _, end in kept), default=0)
    if budget <= max(seen, passes[-1][1]):
        return passes
    return (*kept, (seen, budget), (0, budget))
