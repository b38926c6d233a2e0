"""The training loop: one function, read from top to bottom.

rows -> gradient -> clip -> step -> record, with validation, checkpoints and a polite stop in between.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from inheritune import runs
from inheritune.data.batches import Position, Sampler
from inheritune.errors import DataError, TrainingError
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.machine.memory import forget_peak, is_out_of_memory, peak_memory_bytes
from inheritune.machine.probe import Choices, best_device, choose, computing_as
from inheritune.machine.stop import StopRequest
from inheritune.recipe import TrainRecipe
from inheritune.training.checkpoint import State, find_checkpoint, load_checkpoint, save_checkpoint
from inheritune.training.gradient import accumulate_gradient, prepare_loss
from inheritune.training.optimiser import build_optimiser, set_dropout
from inheritune.training.schedule import learning_rate
from inheritune.training.sinks import MetricsLog, Progress, status_line

PACE_STEPS = 25
"""Steps whose median time gives the speed and the time left that a user sees."""


@dataclass(frozen=True)
class LoopPlan:
    """What one stage does, in whole steps."""

    stage: str
    """Its name in ``metrics.jsonl``."""
    label: str
    """Its name on the terminal."""
    num_steps: int
    batch_sequences: int
    """Rows of one optimiser step."""
    sequence_length: int
    """Tokens per row."""
    target_nats: float | None
    """Watch loss to be reached, for the eye only; nothing is decided by it."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_sequences * self.sequence_length


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


def run_loop(
    model: nn.Module,
    sampler: Sampler,
    watch: list[npt.NDArray[np.integer[Any]]],
    *,
    plan: LoopPlan,
    recipe: TrainRecipe,
    stage_folder: Path,
    metrics_path: Path,
    stop: StopRequest,
    progress: Progress,
    record_event: Callable[[str, str], None],
) -> LoopResult:
    """Train ``model`` in place; resume from the stage's checkpoints if it has any.

    Args:
        model: float32 weights on the CPU; it is moved to the device chosen.
        sampler: rows of the training shards.
        watch: documents of the watch half, end-of-text first.
        plan: steps and sizes.
        recipe: how to train.
        stage_folder: gets ``probe.json``, ``checkpoints/`` and ``validation/``.
        metrics_path: the run's ``metrics.jsonl``.
        stop: polled before every step and between validation batches.
        progress: what the user sees.
        record_event: called with (kind, message) for decisions worth a line in ``events.jsonl``.

    Raises:
        TrainingError: a loss that is not finite, or no memory for a single sequence.
        Stopped: a stop was asked for; a checkpoint of the current step is saved.
    """
    checkpoints = stage_folder / "checkpoints"
    choices = _choices(model, plan, recipe, stage_folder / "probe.json", record_event)
    device = torch.device(choices.device)
    forget_peak(device)
    model.to(device).train()
    set_dropout(model, 0.0)
    with computing_as(choices):
        vocabulary_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        functions, choices = prepare_loss(model, choices, vocabulary_size)
        runs.write_json(stage_folder / "probe.json", choices.to_json())
        optimiser = build_optimiser(model, weight_decay=recipe.weight_decay, beta2=recipe.beta2)
        state = State(step=0, tokens=0, position=Position(0, 0), elapsed_s=0.0)
        if checkpoint := find_checkpoint(checkpoints):
            state = load_checkpoint(checkpoint, model, optimiser)
            record_event("resumed", f"{plan.label} goes on at step {state.step} of {plan.num_steps}")
        metrics = MetricsLog(metrics_path, plan.stage, resumed_step=state.step)
        validation_steps = {round(i * plan.num_steps / recipe.validations) for i in range(recipe.validations + 1)}
        watch_nats: float | None = None
        started = time.monotonic() - state.elapsed_s
        pace: deque[float] = deque(maxlen=PACE_STEPS)  # seconds of the latest steps
        last_saved_s = time.monotonic()
        last_step_s: float | None = None

        def save() -> None:
            metrics.sync()
            save_checkpoint(checkpoints, model, optimiser, state, keep=recipe.keep_checkpoints)

        def stop_here() -> None:
            if stop.requested:
                save()
                stop.check()

        def validate() -> float:
            sums = score_documents(model, watch, sequence_length=plan.sequence_length, check_stop=stop_here)
            save_sums(stage_folder / "validation" / f"{state.tokens}.npy", sums)
            loss_nats = token_mean(sums)
            elapsed_s = time.monotonic() - started
            metrics.write(
                "validation",
                {"step": state.step, "tokens": state.tokens, "elapsed_s": elapsed_s, "loss_nats": loss_nats},
            )
            return loss_nats

        try:
            while state.step < plan.num_steps:
                stop_here()
                if state.step in validation_steps:
                    watch_nats = validate()
                step_began = time.monotonic()
                rate = learning_rate(
                    state.step,
                    num_steps=plan.num_steps,
                    peak=recipe.peak_lr,
                    schedule=recipe.schedule,
                    warmup_fraction=recipe.warmup_fraction,
                    cooldown_fraction=recipe.cooldown_fraction,
                )
                for group in optimiser.param_groups:
                    group["lr"] = rate
                row_array, position = sampler.rows(state.position, plan.batch_sequences)
                rows = torch.from_numpy(row_array).to(device)
                while True:
                    try:
                        optimiser.zero_grad(set_to_none=True)
                        loss_nats = accumulate_gradient(functions, rows, choices).token_nats
                        break
                    except RuntimeError as error:
                        if not is_out_of_memory(error):
                            raise
                        choices = _halve_micro_batch(choices, plan, error)
                        save()  # what was done with the larger one is not done again with the smaller
                        runs.write_json(stage_folder / "probe.json", choices.to_json())
                        record_event("out of memory", f"micro-batch halved to {choices.micro_batch} sequences")
                grad_norm = float(nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip))
                if not (math.isfinite(loss_nats) and math.isfinite(grad_norm)):
                    raise TrainingError(
                        f"{plan.label}: loss {loss_nats} and gradient norm {grad_norm} at step {state.step}. "
                        "Nothing was updated by it. Lower train.peak_lr, or set train.precision: float32."
                    )
                try:
                    optimiser.step()
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise TrainingError(
                        f"{plan.label}: not enough memory for the optimiser's moments (8 bytes per parameter). "
                        "Free memory, or use a machine with more; the last checkpoint holds."
                    ) from error
                now = time.monotonic()
                state = State(state.step + 1, state.tokens + plan.batch_tokens, position, now - started)
                tokens_per_s = plan.batch_tokens / (now - step_began)
                if last_step_s is not None:  # the first step of a process compiles, and says nothing of the pace
                    pace.append(now - step_began)
                last_step_s = now
                metrics.write(
                    "train",
                    {
                        "step": state.step,
                        "tokens": state.tokens,
                        "elapsed_s": state.elapsed_s,
                        "loss_nats": loss_nats,
                        "lr": rate,
                        "grad_norm": grad_norm,
                        "tokens_per_s": tokens_per_s,
                    },
                )
                progress.show(
                    status_line(
                        label=plan.label,
                        tokens=state.tokens,
                        total_tokens=plan.num_steps * plan.batch_tokens,
                        loss_nats=loss_nats,
                        validation_nats=watch_nats,
                        target_nats=plan.target_nats,
                        tokens_per_s=plan.batch_tokens / median(pace) if pace else None,
                    )
                )
                if now - last_saved_s >= 60 * recipe.save_every_minutes:
                    save()
                    last_saved_s = time.monotonic()
            last_nats = validate()
        finally:
            metrics.close()
    return LoopResult(
        steps=state.step,
        tokens=state.tokens,
        elapsed_s=time.monotonic() - started,
        start_watch_nats=token_mean(np.load(stage_folder / "validation" / "0.npy")),
        watch_nats=last_nats,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def save_sums(path: Path, sums: npt.NDArray[np.float64]) -> None:
    """Write per-document (nats, tokens), float64 (documents, 2), in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    np.save(temporary, sums)
    runs.sync_file(temporary)
    temporary.replace(path)


def _choices(
    model: nn.Module, plan: LoopPlan, recipe: TrainRecipe, probe: Path, record_event: Callable[[str, str], None]
) -> Choices:
    """The stage's recorded choices, or new ones from a probe."""
    if probe.exists():
        recorded = Choices.from_json(runs.read_json(probe))
        if recorded.device == "cuda" and best_device() != "cuda":
            raise TrainingError(
                f"{plan.label} was begun on a GPU, and there is none here. Go on where one is, or start over with "
                "--fresh."
            )
        return recorded
    choices = choose(
        hidden_size=model.get_input_embeddings().weight.shape[1],  # type: ignore[operator]
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        sequence_length=plan.sequence_length,
        num_tokens=plan.num_steps * plan.batch_tokens,
        batch_sequences=plan.batch_sequences,
        precision=recipe.precision,
        compile=recipe.compile,
        micro_batch=recipe.micro_batch,
        deterministic=recipe.deterministic,
    )
    for note in choices.notes:
        record_event("note", note)
    return choices


def _halve_micro_batch(choices: Choices, plan: LoopPlan, error: RuntimeError) -> Choices:
    """Half the micro-batch, or an error where it is one sequence already."""
    if choices.micro_batch == 1:
        raise TrainingError(
            f"{plan.label}: not enough memory for one sequence of {plan.sequence_length} tokens. "
            "Lower data.sequence_length, or use a machine with more memory."
        ) from error
    return choices.with_micro_batch(choices.micro_batch // 2)
