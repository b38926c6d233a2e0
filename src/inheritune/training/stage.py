"""A stage: a model folder in, shards in, a trained model folder out. Run twice, it is done once."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune import runs
from inheritune.data.batches import Sampler
from inheritune.data.shards import Shards, check_vocabulary
from inheritune.errors import RecipeError
from inheritune.machine.stop import StopRequest, stop_on_signals
from inheritune.recipe import TrainRecipe, train_recipe
from inheritune.surgery.folder import load_model, resolve
from inheritune.training.loop import LoopPlan, LoopResult, plan_steps, run_loop
from inheritune.training.sinks import Progress, Silent

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


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
        RecipeError: ``out`` was made by other settings.
        DataError: token ids beyond the model's vocabulary, or too little text.
        TrainingError: see ``run_loop``.
        Stopped: stopped on request, saved.
    """
    stage_folder = Path(out)
    recipe = recipe if isinstance(recipe, TrainRecipe) else train_recipe(recipe)
    shards = shards if isinstance(shards, Shards) else Shards.open(Path(shards))
    if not resume:
        shutil.rmtree(stage_folder, ignore_errors=True)
    documents = shards.sequence("train")
    total_tokens = (token_budget or documents.num_tokens) * recipe.passes
    settings = {
        "model": str(model),
        "shards": shards.sha256,
        "recipe": recipe.model_dump(mode="json"),
        "sequence_length": sequence_length,
        "tokens": total_tokens,
        "seed": seed,
    }
    _claim(stage_folder, settings)
    result_path = stage_folder / "result.json"
    if result_path.exists():
        return TrainResult(stage_folder / "model", LoopResult(**runs.read_json(result_path)))

    num_steps, batch_sequences = plan_steps(
        total_tokens, batch_tokens=recipe.batch_tokens, sequence_length=sequence_length
    )
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

    def loop(request: StopRequest) -> LoopResult:
        return run_loop(
            network,
            Sampler(documents, sequence_length, seed),
            [watch.document(index) for index in range(watch.num_documents)],
            plan=plan,
            recipe=recipe,
            stage_folder=stage_folder,
            metrics_path=metrics_path or stage_folder / "metrics.jsonl",
            stop=request,
            progress=progress or Silent(),
            record_event=record_event or (lambda kind, message: None),
        )

    if stop is not None:
        result = loop(stop)
    else:
        with stop_on_signals() as request:
            result = loop(request)
    _save_model(network, start_folder, stage_folder / "model")
    runs.write_json(result_path, result.to_json())
    shutil.rmtree(stage_folder / "checkpoints", ignore_errors=True)  # a finished stage is never resumed
    return TrainResult(stage_folder / "model", result)


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
    """The trained weights as a Hugging Face folder, with every other file of the folder it started from."""
    with runs.new_folder(target) as new:
        for path in start_folder.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES) and path.name != "config.json":
                shutil.copyfile(path, new / path.name)
        model.to(torch.device("cpu")).eval().save_pretrained(new)
