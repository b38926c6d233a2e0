"""A stage: a model folder in, shards in, a trained model folder out. Run twice, it is done once; asked for more tokens,
it goes on from before its cool-down."""

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from inheritune import runs
from inheritune.data.batches import Sampler
from inheritune.data.shards import Shards, TokenDocuments, check_vocabulary
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, RecipeError, SurgeryError
from inheritune.machine.stop import StopRequest, stop_on_signals
from inheritune.recipe import TrainRecipe, train_recipe
from inheritune.surgery.anatomy import find_layers
from inheritune.surgery.certificate import FILE as CERTIFICATE
from inheritune.surgery.folder import load_model, quiet, resolve
from inheritune.surgery.positions import check_positions
from inheritune.surgery.transplant import copy_companions
from inheritune.training import tensorboard
from inheritune.training.checkpoint import find_checkpoint
from inheritune.training.going_on import TrainResult, change_micro_batch, go_on, passes_before, read_result
from inheritune.training.loop import run_loop
from inheritune.training.passes import warning_of_passes
from inheritune.training.plan import LoopPlan, plan_steps
from inheritune.training.schedule import plan_schedule
from inheritune.training.settings import FILE as SETTINGS
from inheritune.training.settings import Settings, changes
from inheritune.training.sinks import Progress, Silent

STAGE_ENTRIES = {
    *(SETTINGS, "probe.json", "result.json", "metrics.jsonl", "model", "average", "checkpoints", "validation"),
    *("start", "tokenizer", tensorboard.FOLDER),
}
"""All that a stage's folder may hold."""

BEFORE_TRAINING = {"start", "tokenizer"}
"""What may be in it before training has marked it with its settings."""


def train(
    model: str | Path,
    shards: Shards | str | Path,
    out: str | Path,
    *,
    recipe: TrainRecipe | Mapping[str, Any] = {},  # noqa: B006  (never mutated; the documented default)
    resume: bool = True,
    sequence_length: int = 1024,
    token_budget: int | None = None,
    total_tokens: int | None = None,
    seed: int = 0,
    name: str | None = None,
    label: str | None = None,
    teacher: str | Path | None = None,
    fresh_layers: Collection[int] | Literal["all"] = (),
    moments_from: Path | None = None,
    look_before_cooldown: bool = False,
    metrics_path: Path | None = None,
    target_nats: float | None = None,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
    record_event: Callable[[str, str], None] | None = None,
) -> TrainResult:
    """Train a model folder on shards into ``out``; called again after a stop or a kill, it goes on exactly.

    Called again with more tokens (a larger budget, more passes, more in all) a stage of the ``wsd`` schedule goes on
    from before its cool-down, finished or not.

    Args:
        model: folder or hub id of the model to start from; it is not changed.
        shards: from ``prepare``, or their folder.
        out: stage folder: ``model/``, ``checkpoints/``, ``validation/``, ``probe.json``, ``result.json``.
        recipe: how to train (``TrainRecipe`` or its fields).
        resume: False deletes what an earlier call left in ``out`` and starts over.
        sequence_length: tokens per row.
        token_budget: tokens of one pass, the first of the training split; None is all of it. ``recipe.passes``
            multiplies it.
        total_tokens: tokens to train on in all, whatever ``passes`` says; a baseline is given what a search has cost.
        seed: of the order of documents.
        name: of the stage in ``metrics.jsonl``; the folder's name by default.
        label: of the stage on the terminal; ``name`` by default.
        teacher: model to distil from, needed where ``recipe.distill_weight`` is above 0.
        fresh_layers: layers that were not inherited, or "all"; the others learn at ``recipe.inherited_lr_scale``.
        moments_from: checkpoint of another stage whose moments, where names and shapes agree, and place in the data
            this stage begins with.
        look_before_cooldown: score the watch half where the cool-down begins, too.
        metrics_path: default ``out/metrics.jsonl``.
        target_nats: a loss to show beside the validation loss.
        stop: an outer stop request; by default SIGTERM and Ctrl-C are caught here.
        progress: where to show the status; nowhere by default.
        record_event: called with (kind, message).

    Raises:
        RecipeError: ``out`` was made by other settings, or holds something else, such as the model itself.
        DataError: shards made with another tokenizer, token ids beyond the vocabulary, or too little text.
        TrainingError: see ``run_loop``.
        Stopped: stopped on request, saved.
    """
    stage_folder = Path(out)
    recipe = recipe if isinstance(recipe, TrainRecipe) else train_recipe(recipe)
    shards = shards if isinstance(shards, Shards) else Shards.open(Path(shards))
    documents = shards.sequence("train")
    tell = record_event or (lambda kind, message: None)
    if sequence_length < 1:
        raise RecipeError(f"a sequence length of {sequence_length} means nothing. Give 1 or more.")
    if recipe.distill_weight and teacher is None:
        raise RecipeError(
            "train.distill_weight is above 0, and there is no teacher. Name one (--teacher), or set it to 0."
        )
    budget = documents.num_tokens if token_budget is None else documents.first(token_budget).num_tokens
    with ExitStack() as alone:
        if stop is None:  # not part of a run that has the lock and the signals already
            _refuse_nested(stage_folder, model, shards)
            alone.enter_context(runs.locked(stage_folder))
            stop = alone.enter_context(stop_on_signals())
        _refuse_foreign(stage_folder)
        if not resume:
            _clear(stage_folder)
        for name_of_folder in ("model", "average"):
            runs.recover(stage_folder / name_of_folder)
        before = Settings.load(stage_folder)
        taught = teacher is not None and recipe.distill_weight > 0
        total = total_tokens or budget * recipe.passes
        num_steps, batch_sequences = plan_steps(
            budget * recipe.passes, batch_tokens=recipe.batch_tokens, sequence_length=sequence_length
        )
        if total_tokens:
            num_steps = max(1, total // (batch_sequences * sequence_length))
        asked = Settings(
            model=_fingerprint(model, before.model if before else None),
            teacher=_fingerprint(teacher, before.teacher if before else None) if teacher and taught else None,
            moments_from=_checkpoint_fingerprint(moments_from, before) if moments_from else None,
            validation=shards.validation_sha256,
            shards=documents.first(budget).sha256,
            recipe=recipe.model_dump(mode="json"),
            fresh_layers="all" if fresh_layers == "all" else sorted(int(layer) for layer in fresh_layers),
            sequence_length=sequence_length,
            seed=seed,
            budget_tokens=budget,
            total_tokens=total,
            batch_sequences=batch_sequences,
            schedule=plan_schedule(recipe, num_steps),
            passes=passes_before(moments_from, budget) or ((0, budget),),
        )
        then = documents.first(min(before.budget_tokens, documents.num_tokens)).sha256 if before else ""
        settings = go_on(before, asked, then, stage_folder, moments_from, tell) if before else asked
        if finished := read_result(stage_folder):
            _keep_only_open(stage_folder, settings)  # the others are left where a kill came before this
            return finished

        start_folder = _start_of(model, stage_folder, tell)
        network = load_model(start_folder)
        check_vocabulary(shards, network.get_input_embeddings().weight.shape[0])
        for warning in (check_positions(network.config, sequence_length), warning_of_passes(recipe.passes)):
            if warning:
                tell("warning", warning)
        _check_tokenizer(start_folder, shards)
        if before:
            for each in changes(before, asked, then, stage_folder).allowed:
                tell("changed", f"{stage_folder.name} | {each}")
            change_micro_batch(before, asked, stage_folder / "probe.json", tell)
        settings = replace(settings, recipe=asked.recipe)
        if before is None:
            alone.enter_context(_no_mark_if_refused(stage_folder))
        runs.write_json(stage_folder / SETTINGS, settings.to_json())
        watch = shards.sequence("watch")
        stage_name = name or stage_folder.name
        loop, average = run_loop(
            network,
            Sampler(_documents_of(settings, documents), sequence_length, seed),
            [watch.document(index) for index in range(watch.num_documents)],
            plan=LoopPlan(
                stage=stage_name,
                label=label or stage_name,
                schedule=settings.schedule,
                batch_sequences=settings.batch_sequences,
                sequence_length=sequence_length,
                target_nats=target_nats,
                look_before_cooldown=look_before_cooldown,
                moments_from=moments_from,
                seed=seed,
                lr_scale=_lr_scale(network, settings.fresh_layers, recipe.inherited_lr_scale),
            ),
            recipe=recipe,
            stage_folder=stage_folder,
            metrics_path=metrics_path or stage_folder / "metrics.jsonl",
            stop=stop,
            progress=progress or Silent(),
            record_event=tell,
            teacher=load_model(resolve(teacher)) if teacher and taught else None,
        )
        if average:
            with average.applied_to(network):
                _save_model(network, start_folder, stage_folder / "average")
        _save_model(network, start_folder, stage_folder / "model")
        loop = replace(
            loop,
            discarded_tokens=settings.discarded_tokens + loop.discarded_tokens,
            discarded_s=settings.discarded_s,
        )
        runs.write_json(stage_folder / "result.json", loop.to_json())
        _keep_only_open(stage_folder, settings)
        result = read_result(stage_folder)
        assert result is not None
        return result


@contextmanager
def _no_mark_if_refused(stage_folder: Path) -> Iterator[None]:
    """Take back the mark of a new stage whose recipe the loop refuses, so that a mended one is no other stage."""
    try:
        yield
    except RecipeError:
        for name in (SETTINGS, "probe.json"):
            (stage_folder / name).unlink(missing_ok=True)
        raise


def _keep_only_open(stage_folder: Path, settings: Settings) -> None:
    """A finished stage is never resumed; only what an extension or a deeper child would start from is kept."""
    for checkpoint in (stage_folder / "checkpoints").glob("step-*"):
        if settings.schedule.open_step is None or checkpoint.name != f"step-{settings.schedule.open_step:08d}":
            runs.remove_folder(checkpoint)


def _start_of(model: str | Path, stage_folder: Path, tell: Callable[[str, str], None]) -> Path:
    """What a stage starts from; where that is gone, as after a first end, its model, which has the same tensors.

    Those tensors' values are then a checkpoint's.

    Raises:
        SurgeryError: it is gone, and there is no checkpoint.
    """
    kept = stage_folder / "model"
    if kept.is_dir() and not Path(model).is_dir():
        found = find_checkpoint(stage_folder / "checkpoints", lambda message: tell("damaged", message))
        return kept if found else resolve(model)
    return resolve(model)


def _documents_of(settings: Settings, documents: TokenDocuments) -> list[TokenDocuments]:
    """What each pass goes over; where added text does not fill a row, all of it."""
    passes = []
    for begin, end in settings.passes:
        part = documents.between(begin, end)
        passes.append(part if part.num_tokens > settings.sequence_length else documents.first(end))
    return passes


def _lr_scale(network: Any, fresh_layers: list[int] | str, scale: float) -> Callable[[str], float]:
    """Learning rate of a parameter relative to the schedule's: what was inherited learns at ``scale``."""
    if scale == 1.0 or fresh_layers == "all":
        return lambda name: 1.0
    prefixes = tuple(f"{find_layers(network).path}.{layer}." for layer in fresh_layers)
    return lambda name: 1.0 if name.startswith(prefixes) else scale


def _refuse_foreign(stage_folder: Path) -> None:
    """Leave a folder alone that holds something else than a stage.

    Raises:
        RecipeError: it is such a folder.
    """
    stage_folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in stage_folder.iterdir() if not path.name.startswith(".")}
    foreign = there - (STAGE_ENTRIES if SETTINGS in there else BEFORE_TRAINING)
    if foreign:
        raise RecipeError(
            f"{stage_folder} holds {min(foreign)!r}, and no training has left it there. "
            "Name another folder for what training leaves behind."
        )


def _refuse_nested(stage_folder: Path, model: str | Path, shards: Shards) -> None:
    """Keep what goes in apart from what comes out, which may be deleted or replaced.

    Raises:
        RecipeError: the model or the shards lie in the stage's folder, or it in them.
    """
    out = stage_folder.resolve()
    for what, folder in (("model", Path(model)), ("shards", shards.folder)):
        given = folder.resolve()
        if folder.is_dir() and (out == given or out in given.parents or given in out.parents):
            raise RecipeError(
                f"the {what} {folder} and the folder {stage_folder} for what training leaves behind lie in each other. "
                "Name another folder."
            )


def _clear(stage_folder: Path) -> None:
    """Delete what a stage left behind; that it is finished goes first, its mark last."""
    for former in stage_folder.glob(".*.old"):
        shutil.rmtree(former)
    for name in ["result.json", *sorted(STAGE_ENTRIES - {"result.json", SETTINGS}), SETTINGS]:
        path = stage_folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _fingerprint(model: str | Path, recorded: str | None) -> str:
    """What a stage starts from, by content: config and weights. Of a folder that is gone, what was recorded."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = resolve(model)  # a hub id: what it means today
        except SurgeryError:
            if recorded is None:
                raise
            return recorded
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name == "config.json" or path.suffix == ".safetensors":
            digest.update(f"{path.name} {runs.file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _checkpoint_fingerprint(checkpoint: Path, before: Settings | None) -> str:
    """A checkpoint by its manifest, which holds the hashes of its files; of one that is gone, what was recorded."""
    path = checkpoint / "manifest.json"
    if path.exists():
        return runs.file_sha256(path)
    return (before.moments_from if before else None) or str(checkpoint)


def _check_tokenizer(model_folder: Path, shards: Shards) -> None:
    """Refuse shards whose tokens mean something else to the model; a model without a tokenizer is not asked.

    Raises:
        DataError: the model's tokenizer has other entries than the shards'.
    """
    if not all((folder / "tokenizer.json").is_file() for folder in (model_folder, shards.tokenizer)):
        return
    own, theirs = (open_tokenizer(folder).backend.get_vocab() for folder in (model_folder, shards.tokenizer))
    if own != theirs:
        raise DataError(
            f"{shards.folder} was made with a tokenizer of {len(theirs)} entries that is not the one of {model_folder} "
            f"({len(own)} entries). Prepare the text again with --tokenizer {model_folder}."
        )


def _save_model(model: Any, start_folder: Path, target: Path) -> None:
    """The trained weights as a Hugging Face folder, with tokenizer, licence and certificate of where it started."""
    with runs.new_folder(target) as new:
        copy_companions(start_folder, new)
        if (start_folder / CERTIFICATE).exists():
            shutil.copyfile(start_folder / CERTIFICATE, new / CERTIFICATE)
        with quiet():
            model.to(torch.device("cpu")).eval().save_pretrained(new)
