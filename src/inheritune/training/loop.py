"""The training loop: one function, read from top to bottom.

rows -> gradient -> clip -> step -> record, with validation, checkpoints and a polite stop in between.
"""

import io
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
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
from inheritune.machine.memory import forget_peak, is_out_of_memory, peak_memory_bytes
from inheritune.machine.probe import Choices, best_device, choose, computing_as
from inheritune.machine.stop import StopRequest
from inheritune.recipe import TrainRecipe
from inheritune.training import tensorboard
from inheritune.training.average import WeightAverage
from inheritune.training.checkpoint import (
    AVERAGE,
    State,
    checkpoint_bytes,
    drop_after,
    find_checkpoint,
    load_checkpoint,
    load_moments,
    read_state,
    read_tensors,
    require_whole,
    save_checkpoint,
    verifies,
)
from inheritune.training.gradient import (
    Losses,
    LossFunctions,
    accumulate_gradient,
    checkpoint_activations,
    prepare_loss,
)
from inheritune.training.health import MOST_SETBACKS, culprit, trouble, with_latest
from inheritune.training.metering import Meter
from inheritune.training.moments import MOMENT_BYTES, MomentFormat
from inheritune.training.optimiser import (
    beta2_of_half_life,
    build_optimiser,
    freeze,
    set_dropout,
    set_learning_rate,
)
from inheritune.training.placement import place_teacher, placing
from inheritune.training.plan import LoopPlan, LoopResult
from inheritune.training.sinks import MetricsLog, Progress, status_line

PACE_STEPS = 25
"""Steps whose median time gives the speed and the time left that a user sees."""


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
    choices = _choices(model, plan, recipe, stage_folder / "probe.json", record_event)
    device = torch.device(choices.device)
    forget_peak(device)
    with placing(f"{plan.label}: the child", model):
        model.to(device).train()
    set_dropout(model, recipe.dropout)
    if frozen := freeze(model, recipe.freeze):
        record_event("frozen", f"{len(frozen)} tensors are not trained, {frozen[0]} the first of them")
    if choices.activation_checkpointing:
        checkpoint_activations(model)
    if teacher is not None:
        with placing(f"{plan.label}: the reference that teaches", teacher):
            choices = place_teacher(teacher, model, choices, recipe)
    with computing_as(choices), torch.random.fork_rng([device] if device.type == "cuda" else []):
        meter = Meter(model, choices, plan.sequence_length)
        if not meter.flops.is_counted:
            record_event("note", "the model's FLOPs could not be counted: 6 per parameter of a matrix are assumed")
        torch.manual_seed(plan.seed)
        vocabulary_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        functions, choices = prepare_loss(
            model,
            choices,
            vocabulary_size,
            sequence_length=plan.sequence_length,
            teacher=teacher,
            distill_weight=recipe.distill_weight,
            distill_temperature=recipe.distill_temperature,
        )
        runs.write_json(stage_folder / "probe.json", choices.to_json())
        half_life = recipe.beta2_half_life
        beta2 = recipe.beta2 if half_life is None else beta2_of_half_life(half_life, plan.batch_tokens)
        optimiser = build_optimiser(
            model,
            weight_decay=recipe.weight_decay,
            beta2=beta2,
            lr_scale=plan.lr_scale,
            moments=recipe.moments,
            compiled=choices.compile,
        )
        with placing(f"{plan.label}: the average of the weights", model):
            average = WeightAverage(model, recipe.average_half_life) if recipe.average_half_life else None
        state = State(step=0, tokens=0, position=Position(0, 0), elapsed_s=0.0)
        checkpoint = find_checkpoint(checkpoints, lambda message: record_event("damaged", message))
        runs.require_space(
            checkpoints,
            (1 if checkpoint else 2) * checkpoint_bytes(model, with_average=bool(average), moments=recipe.moments),
            "checkpoints",
        )
        if checkpoint:
            state = _load(checkpoint, model, optimiser, average)
            record_event("resumed", f"{plan.label} goes on at step {state.step} of {plan.num_steps}")
        elif plan.moments_from:
            require_whole(plan.moments_from)
            load_moments(plan.moments_from, model, optimiser)
            state = replace(state, position=read_state(plan.moments_from).position)
        state = replace(state, num_steps=plan.num_steps)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        looks = plan.looks(recipe.validations)
        rewinds = recipe.on_bad_step == "rewind"
        if not rewinds:
            state = replace(state, anchor=-1)
        if rewinds and checkpoint and not verifies(_folder(checkpoints, state.anchor)):
            state = replace(state, anchor=state.step)  # the policy is new: back to where it was taken up
        watch_nats: float | None = None
        started = time.monotonic() - state.elapsed_s
        pace: deque[float] = deque(maxlen=PACE_STEPS)  # seconds of the latest steps
        last_saved_s = time.monotonic()
        last_step_s: float | None = None

        def open_log() -> MetricsLog:
            looked_again = state.step in {*looks, plan.num_steps}
            return MetricsLog(metrics_path, plan.stage, resumed_step=state.step, looked_again=looked_again)

        def open_board() -> tensorboard.TensorBoard | None:
            folder = stage_folder / tensorboard.FOLDER
            return tensorboard.TensorBoard(folder, state.step, record_event) if recipe.tensorboard else None

        metrics, board = open_log(), open_board()

        def log(kind: str, values: dict[str, Any]) -> None:
            metrics.write(kind, values)
            if board:
                board.write(kind, values)

        def save() -> None:
            metrics.sync()
            save_checkpoint(
                checkpoints,
                model,
                optimiser,
                state,
                keep=recipe.keep_checkpoints,
                held={plan.schedule.open_step, state.anchor},
                average=average.tensors() if average else None,
            )

        def can_be_leaner() -> bool:
            may_recompute = recipe.activation_checkpointing == "auto" and not choices.activation_checkpointing
            can = getattr(model, "supports_gradient_checkpointing", False)
            return choices.micro_batch > 1 or (may_recompute and can)

        def stop_here() -> None:
            if stop.requested:
                save()
                stop.check()

        def score(name: str, check_stop: Callable[[], None] | None) -> float:
            try:
                sums = score_documents(model, watch, sequence_length=plan.sequence_length, check_stop=check_stop)
            except EvaluationError as error:
                ids_MT = torch.from_numpy(watch[0][None, : plan.sequence_length].astype(np.int64)).to(device)
                raise TrainingError(
                    f"{plan.label}, after step {state.step}: {error} Where it comes from: {culprit(model, ids_MT)}."
                ) from error
            save_sums(stage_folder / "validation" / name, sums)
            return token_mean(sums)

        def validate() -> tuple[float, float | None]:
            loss_nats, average_nats = score(f"{state.tokens}.npy", stop_here), None
            if average:
                with average.applied_to(model):  # no stop in here: it would save the average for the weights
                    average_nats = score(f"average-{state.tokens}.npy", None)
            line = {"step": state.step, "tokens": state.tokens, "elapsed_s": time.monotonic() - started}
            known = {"average_loss_nats": average_nats} if average else {}
            log("validation", {**line, "loss_nats": loss_nats, **known})
            return loss_nats, average_nats

        try:
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
                step_began = time.monotonic()
                rate = plan.schedule.rate(state.step)
                set_learning_rate(optimiser, rate)
                row_array, position = sampler.rows(state.position, plan.batch_sequences)
                rows = torch.from_numpy(row_array).to(device)
                while (losses := _try_gradient(optimiser, functions, rows, choices)) is None:
                    if not can_be_leaner():
                        raise TrainingError(
                            f"{plan.label}: not enough memory for one sequence of {plan.sequence_length} tokens. "
                            "Lower data.sequence_length, or use a machine with more memory."
                        )
                    was, choices = choices, choices.leaner()
                    save()  # what was done with the larger one is not done again with the smaller
                    runs.write_json(stage_folder / "probe.json", choices.to_json())
                    if choices.activation_checkpointing and not was.activation_checkpointing:
                        checkpoint_activations(model)
                        record_event("out of memory", "from here on activations are computed again, not kept")
                    else:
                        record_event("out of memory", f"micro-batch halved to {choices.micro_batch} sequences")
                norm = nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
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
                        steps_lost = state.step + 1 - state.anchor
                        state = replace(
                            _load(back, model, optimiser, average),
                            position=position,
                            setbacks=state.setbacks + 1,
                            anchor=state.anchor,
                            rewound_tokens=state.rewound_tokens + steps_lost * plan.batch_tokens,
                            num_steps=plan.num_steps,
                        )
                        metrics.close()
                        if board:
                            board.close()
                        metrics, board = open_log(), open_board()
                        continue
                    record_event("bad step", f"{event}; its update is left out")
                else:
                    nn.utils.clip_grads_with_norm_(trained, recipe.grad_clip, norm)
                    _take_step(optimiser, plan, recipe.moments)
                    if average:
                        average.update(model, plan.batch_tokens)
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
                if last_step_s is not None:  # the first step of a process compiles, and says nothing of the pace
                    pace.append(now - step_began)
                last_step_s = now
                measures = meter.read(plan.batch_tokens, now - step_began)
                log(
                    "train",
                    {
                        "step": state.step,
                        "tokens": state.tokens,
                        "elapsed_s": state.elapsed_s,
                        "loss_nats": _finite(losses.token_nats),
                        "lr": rate,
                        "grad_norm": _finite(grad_norm),
                        "pass": position.pass_index,
                        "row": position.row,
                        **measures,
                        **({"distill_nats": _finite(losses.distill_nats)} if teacher is not None else {}),
                        **({"skipped": True} if why else {}),
                    },
                )
                progress.show(
                    status_line(
                        label=plan.label,
                        tokens=state.tokens,
                        total_tokens=plan.num_steps * plan.batch_tokens,
                        loss_nats=losses.token_nats,
                        validation_nats=watch_nats,
                        target_nats=plan.target_nats,
                        tokens_per_s=plan.batch_tokens / median(pace) if pace else None,
                        utilisation=meter.utilisation(plan.batch_tokens / median(pace)) if pace else None,
                    )
                )
                if now - last_saved_s >= 60 * recipe.save_every_minutes:
                    save()
                    last_saved_s = time.monotonic()
            if plan.schedule.open_step == plan.num_steps:  # no cool-down: training can go on from the very end
                save()
            last_nats, average_nats = validate()
        finally:
            metrics.close()
            if board:
                board.close()
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
    return result, average


def _folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return checkpoints / f"step-{step:08d}"


def _load(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: WeightAverage | None) -> State:
    """Put everything that a checkpoint holds back in its place."""
    state = load_checkpoint(checkpoint, model, optimiser)
    if average:
        average.load(read_tensors(checkpoint / AVERAGE))
    return state


def _try_gradient(
    optimiser: torch.optim.Optimizer,
    functions: LossFunctions,
    rows: Tensor,
    choices: Choices,
) -> Losses | None:
    """Losses and fresh gradients of one step; None where memory ran out."""
    random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if rows.is_cuda else [])]
    try:
        optimiser.zero_grad(set_to_none=True)
        return accumulate_gradient(functions, rows, choices)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        torch.set_rng_state(random[0])  # the failed attempt has drawn its dropout
        if rows.is_cuda:
            torch.cuda.set_rng_state(random[1])
        return None


def _take_step(optimiser: torch.optim.Optimizer, plan: LoopPlan, moments: MomentFormat) -> None:
    """Update the weights.

    Raises:
        TrainingError: no memory for the moments.
    """
    try:
        optimiser.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        wish = "" if moments == "8bit" else " A new run with train.moments: 8bit needs a quarter of that."
        raise TrainingError(
            f"{plan.label}: not enough memory for the optimiser's moments ({MOMENT_BYTES[moments]:.2g} bytes per "
            f"parameter).{wish} Free memory, or use a machine with more; the last checkpoint holds."
        ) from error


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
        activation_checkpointing=recipe.activation_checkpointing is True,
    )
    for note in choices.notes:
        record_event("note", note)
    return choices
