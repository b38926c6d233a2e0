"""Stages of a search: the reference that is made first, a round's child, the baseline from scratch.

A stage that is finished is found and not trained again. The last child, and a baseline that is to have cost as much as
the search, are trained on where the recipe has been given a larger budget.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from inheritune import runs
from inheritune.data.shards import Shards, prepare, training_texts
from inheritune.data.tokenizer import train_tokenizer
from inheritune.growth.run import Round, Run, Scored
from inheritune.growth.scoring import embedding_shape, num_parameters, score
from inheritune.growth.starts import start_from_config, start_like
from inheritune.machine.probe import MICRO_BATCH_TOKENS, best_device
from inheritune.planning.estimate import estimate_stage
from inheritune.recipe import Recipe, TrainRecipe
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.deepen import deepen
from inheritune.surgery.transplant import inherit
from inheritune.training.checkpoint import MODEL, read_tensors, require_whole
from inheritune.training.going_on import TrainResult, open_checkpoint, read_result
from inheritune.training.gradient import LEAST_POSITIONS, LOGITS_AT_ONCE
from inheritune.training.moments import MOMENT_BYTES
from inheritune.training.plan import plan_steps
from inheritune.training.settings import Settings
from inheritune.training.stage import train

TRAINING_RECORD = "training.json"
"""In a model's folder: {"tokens": ...}, what it was trained on, where that is known."""


def make_reference(run: Run) -> Path:
    """Train the reference that the recipe describes, on the run's data; gives its model folder."""
    recipe, making = run.recipe, run.recipe.reference.train
    assert making is not None
    stage = run.stage("reference")
    if read_result(stage) is None:
        tokenizer = Path(making.tokenizer) if making.tokenizer else stage / "tokenizer"
        if not making.tokenizer and not (tokenizer / "tokenizer.json").exists():
            run.progress.say("training a tokenizer on the training side of the data")
            vocabulary_size = int(making.config.get("vocab_size", 4096))
            texts = training_texts(_sources(recipe), **_split_settings(recipe), check_stop=run.stop.check)
            train_tokenizer(texts, vocabulary_size, tokenizer)
        shards = prepare_shards(run, tokenizer)
        plain = {"passes": making.passes, "freeze": [], "distill_weight": 0.0}
        _train_stage(
            run,
            "reference",
            shards,
            recipe=recipe.train.model_copy(update=plain),
            make_start=lambda start: start_from_config(making.config, tokenizer, start, seed=recipe.seed),
            fresh_layers="all",
        )
    runs.remove_folder(stage / "checkpoints")  # a reference is not grown
    if not (stage / "model" / TRAINING_RECORD).exists():
        tokens = runs.read_json(stage / "result.json")["tokens"]
        runs.write_json(stage / "model" / TRAINING_RECORD, {"tokens": tokens})
    return stage / "model"


def prepare_shards(run: Run, tokenizer: Path) -> Shards:
    """The run's shards, prepared once, and made more where the budget has been raised."""
    recipe = run.recipe
    run.progress.say("preparing data")
    return prepare(
        _sources(recipe),
        run.folder / "data",
        tokenizer=tokenizer,
        token_budget=recipe.data.token_budget,
        seed=recipe.seed,
        max_documents=recipe.data.validation.max_documents,
        document_bytes=recipe.data.validation.document_bytes,
        should_stop=run.stop.check,
        may_grow=True,
        **_split_settings(recipe),
    )


def _sources(recipe: Recipe) -> list[Any]:
    """The recipe's sources as plain values."""
    return [s if isinstance(s, str) else s.model_dump(exclude_none=True) for s in recipe.data.sources]


def _split_settings(recipe: Recipe) -> dict[str, Any]:
    """How the validation set is chosen."""
    validation = recipe.data.validation
    return {
        "text_field": recipe.data.text_field,
        "validation": validation.fraction,
        "min_documents": validation.min_documents,
    }


def train_round(
    run: Run,
    number: int,
    depth: int,
    reference: Scored,
    shards: Shards,
    *,
    before: Round | None,
    target_nats: float,
    may_extend: bool,
) -> TrainResult:
    """Make a round's child and train it.

    Args:
        run: the search.
        number: of the round, from 1.
        depth: of its child.
        reference: with its model's folder.
        shards: of the run.
        before: the round before it; None for the first.
        target_nats: shown beside the validation loss.
        may_extend: train a finished child on where the budget has been raised.
    """
    name, mode = f"round-{number}", run.recipe.growth.mode
    stage = run.stage(name)
    if not may_extend and (finished := read_result(stage)):
        return finished
    trunk = open_checkpoint(run.stage(before.stage)) if before and mode != "restart" else None
    recipe = run.recipe.train
    if trunk:
        recipe = recipe.model_copy(update={"warmup_fraction": run.recipe.growth.rewarm_fraction})

    def make_start(start: Path) -> None:
        if trunk is None or before is None:
            certificate = inherit(reference.model, start, layers=depth)
            what = f"inherited layers 0 to {depth - 1} of {reference.depth}"
        else:
            require_whole(trunk)
            certificate = deepen(
                before.child.model,
                reference.model,
                start,
                layers=depth,
                weights=read_tensors(trunk / MODEL),
                added="identity" if mode == "identity" else "reference",
            )
            how = "as no-ops" if mode == "identity" else "as they are in the reference"
            what = f"kept {before.child.depth} trained layers, added layers {before.child.depth} to {depth - 1} {how}"
        run.event(
            name,
            "inherited",
            f"round {number} | {what} | certificate {certificate.kind}, largest difference "
            f"{certificate.max_abs_difference}",
        )
        if before and trunk is None:
            runs.remove_folder(run.stage(before.stage) / "checkpoints")  # nothing starts from it any more

    result = _train_stage(
        run,
        name,
        shards,
        recipe=recipe,
        make_start=make_start,
        label=f"round {number} | depth {depth}",
        target_nats=target_nats,
        teacher=reference.model if recipe.distill_weight else None,
        fresh_layers=range(before.child.depth, depth) if before and trunk else (),
        moments_from=trunk,
        look_before_cooldown=mode != "restart",
    )
    if before:
        runs.remove_folder(run.stage(before.stage) / "checkpoints")
    return result


def train_scratch(
    run: Run, child: Scored, reference: Scored, spent_tokens: int, shards: Shards, target_nats: float
) -> tuple[Scored, TrainResult]:
    """A model of the child's size from its own initialiser, trained on what the search has cost.

    A search that went deeper after its end gets a new baseline; the one of the former depth stays as it is.
    """
    name = "scratch"
    if begun_depth(run, name) not in (None, child.depth):
        name = f"scratch-{child.depth}"
    result = _train_stage(
        run,
        name,
        shards,
        recipe=run.recipe.train.model_copy(update={"freeze": []}),
        make_start=lambda start: start_like(child.model, start, seed=run.recipe.seed),
        label=f"{name} | depth {child.depth}",
        target_nats=target_nats,
        teacher=reference.model if run.recipe.train.distill_weight else None,
        fresh_layers="all",
        total_tokens=spent_tokens,
    )
    return score(run, name, result.model, shards, tokens=result.loop.tokens), result


def begun_depth(run: Run, name: str) -> int | None:
    """Layers of a stage's model, finished or being trained; None where it was not begun."""
    for folder in (run.stage(name) / "model", run.stage(name) / "start"):
        runs.recover(folder)
        if (folder / "config.json").exists():
            return anatomy_of_folder(folder).depth
    return None


def cost_if_extended(run: Run, name: str, round_tokens: int) -> int | None:
    """Tokens that a stage will have cost if it is trained on to a larger budget; None where none is asked for."""
    settings = Settings.load(run.stage(name))
    if settings is None or round_tokens <= settings.total_tokens:
        return None
    finished = read_result(run.stage(name))
    thrown_away = finished.loop.discarded_tokens if finished else settings.discarded_tokens
    if finished:
        thrown_away += settings.schedule.cooldown_steps * settings.batch_sequences * settings.sequence_length
    return round_tokens + thrown_away


def _train_stage(
    run: Run,
    name: str,
    shards: Shards,
    *,
    recipe: TrainRecipe,
    make_start: Callable[[Path], None],
    label: str | None = None,
    target_nats: float | None = None,
    teacher: Path | None = None,
    fresh_layers: Collection[int] | Literal["all"] = (),
    moments_from: Path | None = None,
    look_before_cooldown: bool = False,
    total_tokens: int | None = None,
) -> TrainResult:
    """Train one stage of a run from a start that is made here and deleted when it is done."""
    stage = run.stage(name)
    start = stage / "start"
    if not (stage / "result.json").exists():
        # Finished once and asked for more: what it started from is gone, and its checkpoint holds every weight.
        finished_once = (stage / "model" / "config.json").exists() and any((stage / "checkpoints").glob("step-*"))
        if not finished_once and not (start / "config.json").exists():
            make_start(start)
        _announce(
            run, label or name, stage / "model" if finished_once else start, shards, recipe, total_tokens, teacher
        )
    result = train(
        start,
        shards,
        stage,
        recipe=recipe,
        sequence_length=run.recipe.data.sequence_length,
        token_budget=run.recipe.data.token_budget,
        total_tokens=total_tokens,
        seed=run.recipe.seed,
        name=name,
        label=label,
        teacher=teacher,
        fresh_layers=fresh_layers,
        moments_from=moments_from,
        look_before_cooldown=look_before_cooldown,
        metrics_path=run.folder / "metrics.jsonl",
        target_nats=target_nats,
        stop=run.stop,
        progress=run.progress,
        record_event=lambda kind, message: run.event(name, kind, message),
    )
    runs.remove_folder(start)
    return result


def _announce(
    run: Run,
    label: str,
    start: Path,
    shards: Shards,
    recipe: TrainRecipe,
    total_tokens: int | None,
    teacher: Path | None,
) -> None:
    """The one line before a stage: parameters, steps, disk, expected memory."""
    length = run.recipe.data.sequence_length
    round_tokens = (run.recipe.data.token_budget or shards.sequence("train").num_tokens) * recipe.passes
    steps, batch_sequences = plan_steps(round_tokens, batch_tokens=recipe.batch_tokens, sequence_length=length)
    if total_tokens:
        steps = total_tokens // (batch_sequences * length)
    micro_batch = recipe.micro_batch
    micro_batch_tokens = (
        max(length, MICRO_BATCH_TOKENS[best_device()]) if micro_batch == "auto" else micro_batch * length
    )
    vocabulary_size, hidden_size = embedding_shape(start)
    estimate = estimate_stage(
        parameters=num_parameters(start),
        depth=anatomy_of_folder(start).depth,
        hidden_size=hidden_size,
        steps=steps,
        batch_tokens=batch_sequences * length,
        micro_batch_tokens=min(micro_batch_tokens, batch_sequences * length),
        keep_checkpoints=recipe.keep_checkpoints + (1 if recipe.on_bad_step == "rewind" else 0),
        keeps_average=recipe.average_half_life is not None,
        logits_at_once=min(
            max(LOGITS_AT_ONCE[best_device()], LEAST_POSITIONS * vocabulary_size), micro_batch_tokens * vocabulary_size
        ),
        moment_bytes=MOMENT_BYTES[recipe.moments],
        activation_checkpointing=recipe.activation_checkpointing is True,
        teacher_parameters=num_parameters(teacher) if teacher else 0,
    )
    run.progress.say(estimate.line(label))
