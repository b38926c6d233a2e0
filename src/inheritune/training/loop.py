"""The training loop: one function, read from top to bottom.

rows -> gradient -> step -> record, with validation, checkpoints and a polite stop in between.
"""

import io
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inheritune import runs
from inheritune.data.batches import Position, Sampler
from inheritune.errors import EvaluationError, TrainingError
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.machine.memory import peak_memory_bytes
from inheritune.machine.stop import StopRequest
from inheritune.recipe import TrainRecipe
from inheritune.training.average import WeightAverage
from inheritune.training.checkpoint import (
    State,
    drop_after,
    find_checkpoint,
    load_moments,
    read_state,
    require_whole,
    verifies,
)
from inheritune.training.health import MOST_SETBACKS, culprit, trouble, with_latest
from inheritune.training.learner import Learner, learning
from inheritune.training.metering import Meter
from inheritune.training.optimiser import set_learning_rate
from inheritune.training.plan import LoopPlan, LoopResult
from inheritune.training.sinks import Progress, StageLog, status_line
from inheritune.training.tensorboard import FOLDER as TENSORBOARD


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
    teacher: nn.Module | None = None,
) -> tuple[LoopResult, WeightAverage | None]:
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
        teacher: the reference, where ``recipe.distill_weight`` is above 0; it is moved to the device, too.

    Returns:
        What was done, and the weight average where one is kept.

    Raises:
        TrainingError: too many bad steps, a full disk, or no memory for a single sequence.
        Stopped: a stop was asked for; a checkpoint of the current step is saved.
    """
    checkpoints = stage_folder / "checkpoints"
    looks = plan.looks(recipe.validations)
    rewinds = recipe.on_bad_step == "rewind"
    watch_nats: float | None = None
    probe = stage_folder / "probe.json"
    with ExitStack() as open_until_the_end:
        learner = open_until_the_end.enter_context(
            learning(model, plan=plan, recipe=recipe, probe=probe, record_event=record_event, teacher=teacher)
        )
        device = torch.device(learner.choices.device)
        meter = Meter(learner.flops, learner.choices)
        state = _first_state(learner, plan, recipe, checkpoints, record_event)
        started = time.monotonic() - state.elapsed_s
        last_saved_s = time.monotonic()
        board = stage_folder / TENSORBOARD if recipe.tensorboard else None
        log = StageLog(metrics_path, plan.stage, step=state.step, looks=looks, board=board, record_event=record_event)
        open_until_the_end.callback(log.close)

        def save() -> None:
            log.sync()  # a checkpoint is never ahead of them
            learner.save(checkpoints, state, held={plan.schedule.open_step, state.anchor})

        def stop_here() -> None:
            if stop.requested:
                save()
                stop.check()

        def validate() -> tuple[float, float | None]:
            kept, average_nats = stage_folder / "validation", None
            loss_nats = _score(model, watch, plan, state.step, kept / f"{state.tokens}.npy", stop_here)
            if learner.average:
                with learner.average.applied_to(model):  # no stop in here: it would save the average for the weights
                    average_nats = _score(model, watch, plan, state.step, kept / f"average-{state.tokens}.npy")
            line = {"step": state.step, "tokens": state.tokens, "elapsed_s": time.monotonic() - started}
            known = {"average_loss_nats": average_nats} if learner.average else {}
            log.write("validation", {**line, "loss_nats": loss_nats, **known})
            return loss_nats, average_nats

        while state.step < plan.num_steps:
            stop_here()
            if rewinds and state.step in looks and state.step != state.anchor:
                state = replace(state, anchor=state.step, setbacks=0)
                save()
            if state.step in looks:
                watch_nats, _ = validate()
            if state.step == plan.schedule.open_step:
                save()

            meter.skip()
            began = time.monotonic()
            rate = plan.schedule.rate(state.step)
            set_learning_rate(learner.optimiser, rate)
            row_array, position = sampler.rows(state.position, plan.batch_sequences)
            rows = torch.from_numpy(row_array).to(device)
            while (losses := learner.gradient(rows)) is None:
                leaner = learner.leaner_choices()
                save()  # what was done with the larger one is not done again with the smaller
                record_event("out of memory", learner.change_to(leaner))
            norm = learner.gradient_norm()
            grad_norm = float(norm)

            why = trouble(losses.token_nats, grad_norm, state.recent_nats)
            if why:
                back = _folder(checkpoints, state.anchor)
                _refuse_more(why, model, rows, state, plan, recipe, may_rewind=rewinds and verifies(back))
                where = f"step {state.step}, pass {state.position.pass_index}, row {state.position.row}"
                event = f"{plan.label}, {where}: {why}"
                if rewinds:
                    record_event("bad step", f"{event}; back to step {state.anchor}, on with the text after it")
                    drop_after(checkpoints, state.anchor)
                    state = _gone_back(learner.load(back), state, position, plan)
                    log.go_back(state.step)
                    continue
                record_event("bad step", f"{event}; its update is left out")
            else:
                learner.step(norm)

            now = time.monotonic()
            state = replace(
                state,
                step=state.step + 1,
                tokens=state.tokens + plan.batch_tokens,
                position=position,
                elapsed_s=now - started,
                recent_nats=state.recent_nats if why else with_latest(state.recent_nats, losses.token_nats),
                setbacks=state.setbacks + 1 if why else state.setbacks if rewinds else 0,
                skipped=state.skipped + bool(why),
            )
            line = {
                "step": state.step,
                "tokens": state.tokens,
                "elapsed_s": state.elapsed_s,
                "loss_nats": _finite(losses.token_nats),
                "lr": rate,
                "grad_norm": _finite(grad_norm),
                "pass": position.pass_index,
                "row": position.row,
                **meter.read(plan.batch_tokens, now - began),
                **({"distill_nats": _finite(losses.distill_nats)} if teacher is not None else {}),
                **({"skipped": True} if why else {}),
            }
            log.write("train", line)
            progress.show(
                status_line(
                    label=plan.label,
                    tokens=state.tokens,
                    total_tokens=plan.num_steps * plan.batch_tokens,
                    loss_nats=losses.token_nats,
                    validation_nats=watch_nats,
                    target_nats=plan.target_nats,
                    tokens_per_s=meter.pace,
                    utilisation=meter.utilisation(meter.pace) if meter.pace else None,
                )
            )
            if now - last_saved_s >= 60 * recipe.save_every_minutes:
                save()
                last_saved_s = time.monotonic()

        if plan.schedule.open_step == plan.num_steps:  # no cool-down: training can go on from the very end
            save()
        last_nats, average_nats = validate()
    open_tokens = (plan.schedule.open_step or 0) * plan.batch_tokens
    result = LoopResult(
        steps=state.step,
        tokens=state.tokens,
        elapsed_s=time.monotonic() - started,
        start_watch_nats=_looked_at(stage_folder, 0),
        watch_nats=last_nats,
        peak_memory_bytes=peak_memory_bytes(device),
        skipped=state.skipped,
        discarded_tokens=state.rewound_tokens,
        average_watch_nats=average_nats,
        open_watch_nats=_looked_at(stage_folder, open_tokens) if plan.look_before_cooldown else None,
    )
    return result, learner.average


def _first_state(
    learner: Learner,
    plan: LoopPlan,
    recipe: TrainRecipe,
    checkpoints: Path,
    record_event: Callable[[str, str], None],
) -> State:
    """Where the stage stands: at its newest checkpoint, at another stage's moments and place in the data, or at 0.

    Raises:
        DiskError: no space for the checkpoints to come.
        TrainingError: no checkpoint is whole, or the other stage's is not.
    """
    state = State(step=0, tokens=0, position=Position(0, 0), elapsed_s=0.0)
    checkpoint = find_checkpoint(checkpoints, lambda message: record_event("damaged", message))
    runs.require_space(checkpoints, (1 if checkpoint else 2) * learner.checkpoint_bytes, "checkpoints")
    if checkpoint:
        state = learner.load(checkpoint)
        record_event("resumed", f"{plan.label} goes on at step {state.step} of {plan.num_steps}")
    elif plan.moments_from:
        require_whole(plan.moments_from)
        load_moments(plan.moments_from, learner.model, learner.optimiser)
        state = replace(state, position=read_state(plan.moments_from).position)
    anchor = state.anchor
    if recipe.on_bad_step != "rewind":
        anchor = -1
    elif checkpoint and not verifies(_folder(checkpoints, anchor)):
        anchor = state.step  # the policy is new: back to where it was taken up
    return replace(state, num_steps=plan.num_steps, anchor=anchor)


def _gone_back(saved: State, bad: State, position: Position, plan: LoopPlan) -> State:
    """The state of the checkpoint gone back to, with what the bad step has taught: where the text goes on, and that
    everything since was paid for."""
    steps_lost = bad.step + 1 - bad.anchor
    return replace(
        saved,
        position=position,
        setbacks=bad.setbacks + 1,
        anchor=bad.anchor,
        rewound_tokens=bad.rewound_tokens + steps_lost * plan.batch_tokens,
        num_steps=plan.num_steps,
    )


def _score(
    model: nn.Module,
    watch: list[npt.NDArray[np.integer[Any]]],
    plan: LoopPlan,
    step: int,
    path: Path,
    check_stop: Callable[[], None] | None = None,
) -> float:
    """Watch loss after a step, in nats per token; the documents' sums are kept under ``path``.

    Raises:
        TrainingError: it is not finite; names the tensor that it comes from.
    """
    try:
        sums = score_documents(model, watch, sequence_length=plan.sequence_length, check_stop=check_stop)
    except EvaluationError as error:
        ids_1T = torch.from_numpy(watch[0][None, : plan.sequence_length].astype(np.int64))
        at_fault = culprit(model, ids_1T.to(next(model.parameters()).device))
        raise TrainingError(f"{plan.label}, after step {step}: {error} Where it comes from: {at_fault}.") from error
    save_sums(path, sums)
    return token_mean(sums)


def _folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return checkpoints / f"step-{step:08d}"


def _refuse_more(
    why: str,
    model: nn.Module,
    rows: Tensor,
    state: State,
    plan: LoopPlan,
    recipe: TrainRecipe,
    *,
    may_rewind: bool,
) -> None:
    """End the run at a bad step where the recipe says so, or where leaving steps out or going back does not help.

    Raises:
        TrainingError: names the step, the reason and the tensor.
    """
    goes_on = recipe.on_bad_step == "skip" or may_rewind
    if goes_on and state.setbacks + 1 < MOST_SETBACKS:
        return
    often = "" if recipe.on_bad_step == "stop" else f" ({state.setbacks + 1} setbacks in a row)"
    raise TrainingError(
        f"{plan.label}: {why} at step {state.step}{often}. Where it comes from: "
        f"{culprit(model, rows[:, :-1])}. No bad step was taken, and the last checkpoint holds. Lower "
        "train.peak_lr or set train.precision: float32 in a new run, or choose another train.on_bad_step in this one."
    )


def _finite(value: float | None) -> float | None:
    """As JSON can have it: what is no number is null."""
    return value if value is not None and math.isfinite(value) else None


def _looked_at(stage_folder: Path, tokens: int) -> float:
    """Watch loss after so many tokens, from the scores that were kept."""
    return token_mean(np.load(stage_folder / "validation" / f"{tokens}.npy"))


def save_sums(path: Path, sums: npt.NDArray[np.float64]) -> None:
    """Write per-document (nats, tokens), float64 (documents, 2), in one step."""
    content = io.BytesIO()
    np.save(content, sums)
    runs.write_bytes(path, content.getvalue())
