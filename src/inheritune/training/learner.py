"""What a stage trains, as one thing: a model on its device with its loss, its optimiser and the average of its weights.

It gives gradients, takes steps, is saved, and is put back exactly. How it computes is chosen once a stage and recorded.
"""

# B sequences of the step, T positions.

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from inheritune import runs
from inheritune.errors import TrainingError
from inheritune.machine.flops import TokenFlops, training_flops
from inheritune.machine.memory import forget_peak, is_out_of_memory
from inheritune.machine.probe import Choices, best_device, choose, computing_as
from inheritune.recipe import TrainRecipe
from inheritune.training.average import WeightAverage
from inheritune.training.checkpoint import (
    AVERAGE,
    State,
    checkpoint_bytes,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from inheritune.training.gradient import Losses, accumulate_gradient, checkpoint_activations, prepare_loss
from inheritune.training.moments import MOMENT_BYTES
from inheritune.training.optimiser import beta2_of_half_life, build_optimiser, freeze, set_dropout
from inheritune.training.placement import place_teacher, placing
from inheritune.training.plan import LoopPlan


class Learner:
    """Model, loss, optimiser and weight average of one stage. Made by ``learning``, and used inside of it."""

    def __init__(
        self,
        model: nn.Module,
        choices: Choices,
        flops: TokenFlops,
        *,
        plan: LoopPlan,
        recipe: TrainRecipe,
        probe: Path,
        teacher: nn.Module | None = None,
    ) -> None:
        """
        Args:
            model: on the device it trains on, its frozen parameters marked.
            choices: how to compute; the paths of the loss are added, and all is recorded.
            flops: of one token.
            plan: steps and sizes.
            recipe: how to train.
            probe: file that records the choices.
            teacher: the reference where it teaches, placed.

        Raises:
            RecipeError: teacher and model have different vocabularies, or a beta2 that small moments cannot follow.
            TrainingError: no memory for the average of the weights.
        """
        self.model, self.flops = model, flops
        self.plan, self._recipe, self._probe = plan, recipe, probe
        torch.manual_seed(plan.seed)
        self._functions, choices = prepare_loss(
            model,
            choices,
            model.get_input_embeddings().weight.shape[0],  # type: ignore[operator]
            sequence_length=plan.sequence_length,
            teacher=teacher,
            distill_weight=recipe.distill_weight,
            distill_temperature=recipe.distill_temperature,
        )
        self._compute_as(choices)
        half_life = recipe.beta2_half_life
        self.optimiser = build_optimiser(
            model,
            weight_decay=recipe.weight_decay,
            beta2=recipe.beta2 if half_life is None else beta2_of_half_life(half_life, plan.batch_tokens),
            lr_scale=plan.lr_scale,
            moments=recipe.moments,
            compiled=choices.compile,
        )
        with placing(f"{plan.label}: the average of the weights", model):
            self.average = WeightAverage(model, recipe.average_half_life) if recipe.average_half_life else None
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @property
    def checkpoint_bytes(self) -> int:
        """What one checkpoint takes on disk."""
        return checkpoint_bytes(self.model, with_average=bool(self.average), moments=self._recipe.moments)

    def gradient(self, rows: Tensor) -> Losses | None:
        """Losses and fresh gradients of one step, rows int64 (B, T + 1) on the device; None where memory ran out."""
        random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if rows.is_cuda else [])]
        try:
            self.optimiser.zero_grad(set_to_none=True)
            return accumulate_gradient(self._functions, rows, self.choices)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.set_rng_state(random[0])  # the failed attempt has drawn its dropout
            if rows.is_cuda:
                torch.cuda.set_rng_state(random[1])
            return None

    def gradient_norm(self) -> Tensor:
        """Of all gradients together, before clipping."""
        return nn.utils.get_total_norm([each.grad for each in self._trained if each.grad is not None])

    def step(self, norm: Tensor) -> None:
        """Clip the gradients, whose norm that is, update the weights, and draw their average after them.

        Raises:
            TrainingError: no memory for the moments.
        """
        nn.utils.clip_grads_with_norm_(self._trained, self._recipe.grad_clip, norm)
        try:
            self.optimiser.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            moments = self._recipe.moments
            wish = "" if moments == "8bit" else " A new run with train.moments: 8bit needs a quarter of that."
            raise TrainingError(
                f"{self.plan.label}: not enough memory for the optimiser's moments ({MOMENT_BYTES[moments]:.2g} bytes "
                f"per parameter).{wish} Free memory, or use a machine with more; the last checkpoint holds."
            ) from error
        if self.average:
            self.average.update(self.model, self.plan.batch_tokens)

    def leaner_choices(self) -> Choices:
        """How to compute with less memory than now.

        Raises:
            TrainingError: nothing smaller is left, or allowed.
        """
        may_recompute = self._recipe.activation_checkpointing == "auto" and not self.choices.activation_checkpointing
        can_recompute = may_recompute and getattr(self.model, "supports_gradient_checkpointing", False)
        if self.choices.micro_batch > 1 or can_recompute:
            return self.choices.leaner()
        raise TrainingError(
            f"{self.plan.label}: not enough memory for one sequence of {self.plan.sequence_length} tokens. "
            "Lower data.sequence_length, or use a machine with more memory."
        )

    def change_to(self, leaner: Choices) -> str:
        """Compute so from here on; recorded, and told in words."""
        before = self.choices
        self._compute_as(leaner)
        if leaner.activation_checkpointing and not before.activation_checkpointing:
            checkpoint_activations(self.model)
            return "from here on activations are computed again, not kept"
        return f"micro-batch halved to {leaner.micro_batch} sequences"

    def _compute_as(self, choices: Choices) -> None:
        self.choices = choices
        runs.write_json(self._probe, choices.to_json())

    def save(self, checkpoints: Path, state: State, held: Collection[int | None]) -> None:
        """Commit a checkpoint; the newest ones and those of the steps ``held`` stay.

        Raises:
            DiskError, TrainingError: as ``save_checkpoint``.
        """
        save_checkpoint(
            checkpoints,
            self.model,
            self.optimiser,
            state,
            keep=self._recipe.keep_checkpoints,
            held=held,
            average=self.average.tensors() if self.average else None,
        )

    def load(self, checkpoint: Path) -> State:
        """Put everything that a checkpoint holds back in its place, bit for bit.

        Raises:
            TrainingError: it cannot be read, or is another model's.
        """
        state = load_checkpoint(checkpoint, self.model, self.optimiser)
        if self.average:
            self.average.load(read_tensors(checkpoint / AVERAGE))
        return state


@contextmanager
def learning(
    model: nn.Module,
    *,
    plan: LoopPlan,
    recipe: TrainRecipe,
    probe: Path,
    record_event: Callable[[str, str], None],
    teacher: nn.Module | None = None,
) -> Iterator[Learner]:
    """A learner on the best device, computing as was chosen at the stage's first start; threads, determinism and random
    state are put back afterwards.

    Args:
        model: float32 weights on the CPU.
        plan: steps and sizes.
        recipe: how to train.
        probe: where the choices stand, or are written.
        record_event: called with (kind, message).
        teacher: the reference, where it teaches.

    Raises:
        RecipeError: see ``Learner``; dropout, freezing or checkpointing of activations that this model cannot have.
        TrainingError: model or reference do not fit, or the stage was begun on a GPU that is not here.
    """
    choices = _choices(model, plan, recipe, probe, record_event)
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
        flops = training_flops(model, plan.sequence_length)  # before anything is compiled
        if not flops.is_counted:
            record_event("note", "the model's FLOPs could not be counted: 6 per parameter of a matrix are assumed")
        yield Learner(model, choices, flops, plan=plan, recipe=recipe, probe=probe, teacher=teacher)


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
