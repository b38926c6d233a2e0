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
        token_budget: tokens of one pass; None is all of the training split. ``recipe.passes`` multiplies it.
        seed: of the order of documents.
        name: of the stage in ``metrics.jsonl``; the folder's name by default.
        label: of the stage on the terminal; ``name`` by default.
        metrics_path: default ``out/metrics.jsonl``.
        target_nats: a loss to show beside the validation loss.
        stop: an outer stop request; by default SIGTERM and Ctrl-C are caught here.
        progress: where to show the status; nowhere by default.
        record_event: called with (kind, message).

    Raises:
        RecipeError: ``out`` was made by other settings, or holds something else.
        DataError: token ids beyond the model's vocabulary, or too little text.
        TrainingError: see ``run_loop``.
        Stopped: stopped on request, saved.
    """
    stage_folder = Path(out)
    recipe = recipe if isinstance(recipe, TrainRecipe) else train_recipe(recipe)
    shards = shards if isinstance(shards, Shards) else Shards.open(Path(shards))
    documents = shards.sequence("train")
    if sequence_length < 1:
        raise RecipeError(f"a sequence length of {sequence_length} means nothing. Give 1 or more.")
    if token_budget is not None and not 1 <= token_budget <= documents.num_tokens:
        raise DataError(
            f"a token budget of {token_budget} is not to be had: the shards hold {documents.num_tokens} training "
            f"tokens. Give at most {documents.num_tokens}, and raise passes to go over them more often."
        )
    total_tokens = (token_budget or documents.num_tokens) * recipe.passes
    num_steps, batch_sequences = plan_steps(
        total_tokens, batch_tokens=recipe.batch_tokens, sequence_length=sequence_length
    )
    with ExitStack() as alone:
        if stop is None:  # not part of a run that has the lock and the signals already
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
            "tokens": total_tokens,
            "seed": seed,
        }
        _claim(stage_folder, settings)
        result_path = stage_folder / "result.json"
        if result_path.exists():
            shutil.rmtree(stage_folder / "checkpoints", ignore_errors=True)  # left where a kill came just before this
            return TrainResult(stage_folder / "model", LoopResult(**runs.read_json(result_path)))

        stage_name = name or stage_folder.name
        plan = LoopPlan(
            stage=stage_name,
            label=label or stage_name,
            num_steps=num_steps,
            batch_sequences=batch_sequences,
            sequence_length=sequence_length,
            target_nats=target_nats,
        )
        start_folder = resolve(model)
        network = load_model(start_folder)
        check_vocabulary(shards, network.get_input_embeddings().weight.shape[0])
        check_positions(network.config, sequence_length)
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
    others = (
        [path.name for path in stage_folder.iterdir() if not path.name.startswith(".")] if stage_folder.exists() else []
    )
    if others and not set(others) <= STAGE_ENTRIES:
        raise RecipeError(
            f"{stage_folder} holds {sorted(set(others) - STAGE_ENTRIES)[0]!r}, which is no part of a stage. "
            "Name another folder for what training leaves behind."
        )


def _clear(stage_folder: Path) -> None:
    """Delete what a stage left behind; its mark goes last."""
    for name in [*sorted(STAGE_ENTRIES - {"settings.json"}), "settings.json"]:
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


def _claim(stage_folder: Path, settings: dict[str, Any]) -> None:
    """Mark the folder as made by these settings, or refuse one that other settings made."""
    path = stage_folder / "settings.json"
    if not path.exists():
        runs.write_json(path, settings)
        return
    before = runs.read_json(path)
    changed = [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(value)}"
        for key, value in settings.items()
        if before.get(key) != value
    ]
    if changed:
        raise RecipeError(
            f"{stage_folder} was made by other settings ({'; '.join(changed)}). "
            "Choose another folder, or start over with resume=False."
        )


def check_positions(config: Any, sequence_length: int) -> None:
    """Refuse rows longer than the positions that the model has learned or was scaled for."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise RecipeError(
            f"data.sequence_length is {sequence_length}, and the model has {positions} positions. "
            f"Set data.sequence_length to {positions} or less."
        )


def _save_model(model: Any, start_folder: Path, target: Path) -> None:
    """The trained weights as a Hugging Face folder, with tokenizer, licence and certificate of where it started."""
    with runs.new_folder(target) as new:
        copy_companions(start_folder, new)
        if (start_folder / CERTIFICATE).exists():
            shutil.copyfile(start_folder / CERTIFICATE, new / CERTIFICATE)
        with quiet():
            model.to(torch.device("cpu")).eval().save_pretrained(new)
