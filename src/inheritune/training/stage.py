"""A stage: a model folder in, shards in, a trained model folder out. Run twice, it is done once."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune import runs
from inheritune.data.batches import Sampler
from inheritune.data.shards import Shards, check_vocabulary
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, RecipeError
from inheritune.machine.stop import StopRequest, stop_on_signals
from inheritune.recipe import TrainRecipe, train_recipe
from inheritune.surgery.certificate import FILE as CERTIFICATE
from inheritune.surgery.folder import load_model, quiet, resolve
from inheritune.surgery.transplant import copy_companions
from inheritune.training.loop import LoopPlan, LoopResult, plan_steps, run_loop
from inheritune.training.sinks import Progress, Silent

STAGE_ENTRIES = {
    *("settings.json", "probe.json", "result.json", "metrics.jsonl", "model", "checkpoints", "validation"),
    *("start", "tokenizer"),
}
"""All that a stage's folder may hold."""

BEFORE_TRAINING = {"start", "tokenizer"}
"""What may be in it before training has marked it with its settings."""


@dataclass(frozen=True)
class TrainResult:
    """A finished stage."""

    model: Path
    """Hugging Face folder of the trained model, float32."""
    loop: LoopResult

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"model": str(self.model), **self.loop.to_json()}


def train(
    model: str | Path,
    shards: Shards | str | Path,
    out: str | Path,
    *,
    recipe: TrainRecipe | Mapping[str, Any] = {},  # noqa: B006  (never mutated; the documented default)
    resume: bool = True,
    sequence_length: int = 1024,
    token_budget: int | None = None,
    rounds: int = 1,
    seed: int = 0,
    name: str | None = None,
    label: str | None = None,
    metrics_path: Path | None = None,
    target_nats: float | None = None,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
    record_event: Callable[[str, str], None] | None = None,
) -> TrainResult:
    """Train a model folder on shards into ``out``; called again after a stop or a kill, it goes on exactly.

    Args:
        model: folder or hub id of the model to start from; it is not changed.
        shards: from ``prepare``, or their folder.
        out: stage folder: ``model/``, ``checkpoints/``, ``validation/``, ``probe.json``, ``result.json``.
        recipe: how to train (``TrainRecipe`` or its fields).
        resume: False deletes what an earlier call left in ``out`` and starts over.
        sequence_length: tokens per row.
        token_budget: tokens of one pass, the first of the training split; None is all of it. ``recipe.passes``
            multiplies it.
        rounds: train as many steps as so many rounds together; a baseline is given what a search has cost.
        seed: of the order of documents.
        name: of the stage in ``metrics.jsonl``; the folder's name by default.
        label: of the stage on the terminal; ``name`` by default.
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
    if sequence_length < 1:
        raise RecipeError(f"a sequence length of {sequence_length} means nothing. Give 1 or more.")
    if token_budget is not None:
        documents = documents.first(token_budget)
    total_tokens = documents.num_tokens * recipe.passes
    num_steps, batch_sequences = plan_steps(
        total_tokens, batch_tokens=recipe.batch_tokens, sequence_length=sequence_length
    )
    with ExitStack() as alone:
        if stop is None:  # not part of a run that has the lock and the signals already
            _refuse_nested(stage_folder, model, shards)
            alone.enter_context(runs.locked(stage_folder))
            stop = alone.enter_context(stop_on_signals())
        _refuse_foreign(stage_folder)
        if not resume:
            _clear(stage_folder)
        settings = {
            "model": _fingerprint(model, stage_folder),
            "shards": shards.sha256,
            "recipe": recipe.model_dump(mode="json"),
            "sequence_length": sequence_length,
            "tokens": total_tokens * rounds,
            "seed": seed,
        }
        _refuse_other(stage_folder, settings)
        result_path = stage_folder / "result.json"
        if result_path.exists():
            shutil.rmtree(stage_folder / "checkpoints", ignore_errors=True)  # left where a kill came just before this
            return TrainResult(stage_folder / "model", LoopResult(**runs.read_json(result_path)))

        stage_name = name or stage_folder.name
        plan = LoopPlan(
            stage=stage_name,
            label=label or stage_name,
            num_steps=num_steps * rounds,
            batch_sequences=batch_sequences,
            sequence_length=sequence_length,
            target_nats=target_nats,
        )
        start_folder = resolve(model)
        network = load_model(start_folder)
        check_vocabulary(shards, network.get_input_embeddings().weight.shape[0])
        check_positions(network.config, sequence_length)
        _check_tokenizer(start_folder, shards)
        runs.write_json(stage_folder / "settings.json", settings)
        watch = shards.sequence("watch")

        result = run_loop(
            network,
            Sampler(documents, sequence_length, seed),
            [watch.document(index) for index in range(watch.num_documents)],
            plan=plan,
            recipe=recipe,
            stage_folder=stage_folder,
            metrics_path=metrics_path or stage_folder / "metrics.jsonl",
            stop=stop,
            progress=progress or Silent(),
            record_event=record_event or (lambda kind, message: None),
        )
        _save_model(network, start_folder, stage_folder / "model")
        runs.write_json(result_path, result.to_json())
        shutil.rmtree(stage_folder / "checkpoints", ignore_errors=True)  # a finished stage is never resumed
        return TrainResult(stage_folder / "model", result)


def _refuse_foreign(stage_folder: Path) -> None:
    """Leave a folder alone that holds something else than a stage.

    Raises:
        RecipeError: it is such a folder.
    """
    stage_folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in stage_folder.iterdir() if not path.name.startswith(".")}
    foreign = there - (STAGE_ENTRIES if "settings.json" in there else BEFORE_TRAINING)
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
    for name in ["result.json", *sorted(STAGE_ENTRIES - {"result.json", "settings.json"}), "settings.json"]:
        path = stage_folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _fingerprint(model: str | Path, stage_folder: Path) -> str:
    """What the stage starts from, by content: config and weights. A finished stage's start may be gone."""
    folder = Path(model)
    if not folder.is_dir():
        before = stage_folder / "settings.json"
        finished = (stage_folder / "result.json").exists() and before.exists()
        return str(runs.read_json(before)["model"]) if finished else str(model)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name == "config.json" or path.suffix == ".safetensors":
            digest.update(f"{path.name} {runs.file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _refuse_other(stage_folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that other settings made.

    Raises:
        RecipeError: it is one, or its settings cannot be read.
    """
    path = stage_folder / "settings.json"
    if not path.exists():
        return
    try:
        before = dict(runs.read_json(path))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{path} is damaged ({error}), so it is not known what {stage_folder} was made by. Restore it, choose "
            "another folder, or start over with --fresh (from Python: resume=False)."
        ) from error
    changed = [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(value)}"
        for key, value in settings.items()
        if before.get(key) != value
    ]
    if changed:
        raise RecipeError(
            f"{stage_folder} was made by other settings ({'; '.join(changed)}). "
            "Choose another folder, or start over with --fresh (from Python: resume=False)."
        )


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


def check_positions(config: Any, sequence_length: int) -> None:
    """Refuse rows longer than the positions that the model has learned or was scaled for."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise RecipeError(
            f"a sequence length of {sequence_length} is asked for, and the model has {positions} positions. "
            f"Set data.sequence_length (--sequence-length of train) to {positions} or less."
        )


def _save_model(model: Any, start_folder: Path, target: Path) -> None:
    """The trained weights as a Hugging Face folder, with tokenizer, licence and certificate of where it started."""
    with runs.new_folder(target) as new:
        copy_companions(start_folder, new)
        if (start_folder / CERTIFICATE).exists():
            shutil.copyfile(start_folder / CERTIFICATE, new / CERTIFICATE)
        with quiet():
            model.to(torch.device("cpu")).eval().save_pretrained(new)
