"""Loss and gradient of one optimiser step: micro-batches, and the head by chunks.

The logits of a large vocabulary are the largest tensor of a step. They are made for a few positions at a time, turned
into a loss and a gradient of the hidden states at once, and forgotten; then the body goes backward once. Where the
reference teaches, its logits are made for the same few positions.
"""

# B sequences of the step, M of one micro-batch, T positions, N of some sequences, C of one chunk, D hidden size,
# E the teacher's hidden size, V vocabulary.

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inheritune.errors import RecipeError
from inheritune.machine.attention import attend_by_blocks
from inheritune.machine.head import split_head
from inheritune.machine.probe import Choices, autocast
from inheritune.surgery.anatomy import layer_modules
from inheritune.training.narrow_output import NarrowOutput, narrow_output

LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**26}
"""Elements of the largest logits tensor, a teacher's included: 64 MiB or 256 MiB in float32. Each chunk adds once to
the gradient of the output matrix; on a GPU that is dear beside a small chunk's products."""

COMPILED_GROWTH = {"cpu": 1, "cuda": 4}
"""How many times as many where the loss is compiled: then nothing as wide as a logits tensor is kept in float32."""

LEAST_POSITIONS = 512
"""Positions of a compiled chunk at least, whatever the vocabulary: a gradient of the whole output matrix for fewer of
them costs more than their logits, in time and, in a heap that falls to pieces, in memory."""

HEAD_OPTIONS: dict[str, Any] = {"force_shape_pad": True}
"""GPT-2 has 50,257 words, and a GPU multiplies with a matrix of no multiple of 8 rows at a quarter of its speed; the
padding is joined to the casts around the product. It touches a GPU alone."""


@dataclass(frozen=True)
class Losses:
    """Means over the tokens of one step."""

    token_nats: float
    """The plain token loss, whatever the weights were trained on."""
    distill_nats: float | None
    """KL(teacher || child) at the temperature, neither weighed nor rescaled; None without a teacher."""


@dataclass(frozen=True)
class Distillation:
    """The teacher as the step uses it."""

    body: Callable[[Tensor], Tensor]
    """Token ids (M, T) to the teacher's hidden states (M, T, E), or to its logits."""
    summed_losses: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """The child's hidden states (1, N, D), targets (1, N) and the teacher's hidden states (1, N, E) to the summed
    token loss and the summed divergence in nats, float32."""
    token_weight: float
    divergence_weight: float


@dataclass(frozen=True)
class LossFunctions:
    """The model as the step uses it."""

    body: Callable[[Tensor], Tensor]
    """Token ids (M, T) to hidden states (M, T, D), or to logits (M, T, V) on the "model" path."""
    summed_loss: Callable[[Tensor, Tensor], Tensor]
    """Hidden states (1, N, D), or logits, and targets (1, N) to the summed loss in nats, float32."""
    positions_at_once: int
    """Positions N of one chunk at most."""
    distillation: Distillation | None = None
    """Takes the place of ``summed_loss`` where the reference teaches."""
    narrow_output: NarrowOutput | None = None
    """What the head multiplies with, where it is renewed at every step."""


def prepare_loss(
    model: nn.Module,
    choices: Choices,
    vocabulary_size: int,
    *,
    sequence_length: int,
    teacher: nn.Module | None = None,
    distill_weight: float = 0.0,
    distill_temperature: float = 1.0,
) -> tuple[LossFunctions, Choices]:
    """Split the model once, compile its blocks where chosen; the path taken comes back in the choices.

    What is compiled is for use inside ``computing_as``.

    The loss of a token is (1 - w) x its cross-entropy + w x T^2 x KL(teacher || child), both distributions taken from
    logits / T; T^2 keeps the gradient's size as T grows.

    Args:
        model: the child, in the mode it trains in.
        choices: precision, compilation, path of the loss.
        vocabulary_size: rows of the child's embedding.
        sequence_length: tokens of a row.
        teacher: the reference, on the same device; it is put in evaluation mode, and never changed.
        distill_weight: w, from 0 to 1; at 0 the teacher is not run.
        distill_temperature: T.

    Raises:
        RecipeError: teacher and child have vocabularies of different size.

    Source: arXiv:1503.02531 (T and T^2); arXiv:2407.14679 (forward divergence on logits alone suffices).
    """
    assert teacher is not model
    taught = teacher if distill_weight > 0 else None
    if taught is not None:
        rows = taught.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if rows != vocabulary_size:
            raise RecipeError(
                f"the reference has a vocabulary of {rows} rows and the child one of {vocabulary_size}, so their "
                "next-token probabilities cannot be compared. Set train.distill_weight: 0, or teach with the model "
                "that the child was cut from."
            )
    split = split_head(model) if choices.loss_path == "split" else None
    body, head = split or _own_forward(model)
    narrow = None
    if split and choices.compile and choices.precision == "bfloat16" and choices.device == "cpu":
        narrow = narrow_output(model, split)  # a GPU has few chunks, and this was not measured there
    distillation = None
    if taught is not None:
        with autocast(choices):  # its matrices may be in bfloat16 already
            distillation = _distillation(head, taught, weight=distill_weight, temperature=distill_temperature)

    def summed_loss(hidden_1ND: Tensor, targets_1N: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden_1ND).float().flatten(0, 1), targets_1N.flatten(), reduction="sum")

    def joined_loss(hidden_1ND: Tensor, targets_1N: Tensor) -> Tensor:
        return sum_cross_entropy(head(hidden_1ND).flatten(0, 1), targets_1N.flatten())

    if choices.attention == "blocks" and not attend_by_blocks(model, sequence_length):
        choices = replace(choices, attention="model")
    if choices.compile:
        stays = taught is not None and choices.teacher != "offloaded"
        layers = [*layer_modules(model), *(layer_modules(taught) if taught is not None and stays else [])]
        for layer in layers:  # one compiled block serves every layer of its kind, at every depth
            layer.compile(dynamic=False)
        summed_loss = torch.compile(joined_loss, dynamic=False, options=HEAD_OPTIONS)
        if distillation:
            compiled = torch.compile(distillation.summed_losses, dynamic=False, options=HEAD_OPTIONS)
            distillation = replace(distillation, summed_losses=compiled)
    functions = LossFunctions(
        body,
        summed_loss,
        _positions_at_once(choices, vocabulary_size * (2 if distillation else 1)),
        distillation,
        narrow,
    )
    return functions, choices if split else replace(choices, loss_path="model")


def _positions_at_once(choices: Choices, logits_of_one: int) -> int:
    """Positions of one chunk at most."""
    if not choices.compile:
        return max(1, LOGITS_AT_ONCE[choices.device] // logits_of_one)
    at_once = LOGITS_AT_ONCE[choices.device] * COMPILED_GROWTH[choices.device]
    return max(LEAST_POSITIONS, at_once // logits_of_one)


def checkpoint_activations(model: Any) -> None:
    """Let every layer keep its input alone, and compute the rest again in the backward pass.

    Raises:
        RecipeError: the model's layers cannot.
    """
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(
            f"train.activation_checkpointing: a {model.config.model_type} has no layers that can be computed again. "
            "Set it to false, and lower train.micro_batch instead."
        ) from error


class SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits (N, V) and targets (N), summed over N in float32, for the compiler.

    For the backward it keeps the logits in their own dtype and one number per position. The gradient is written in one
    pass: comparing each column with the target is cheaper than the scattered write of ``F.cross_entropy``. It is one
    expression that reads the logits once, so the compiler writes it over them.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """The sum in nats."""
        wide_NV = logits_NV.float()
        log_total_N1 = wide_NV.logsumexp(dim=-1, keepdim=True)
        ctx.save_for_backward(logits_NV, targets_N, log_total_N1)
        return (log_total_N1 - wide_NV.gather(-1, targets_N[:, None])).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """(softmax - one at the target) x the gradient from above."""
        logits_NV, targets_N, log_total_N1 = ctx.saved_tensors
        columns_V = torch.arange(logits_NV.shape[-1], dtype=torch.int32, device=logits_NV.device)
        is_target_NV = columns_V == targets_N[:, None].to(torch.int32)
        softmax_NV = (logits_NV.float() - log_total_N1).exp()
        return ((softmax_NV - is_target_NV.float()) * upstream[0]).to(logits_NV.dtype), None


def sum_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """``SummedCrossEntropy`` of some logits and targets."""
    nats: Tensor = SummedCrossEntropy.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return nats


def even_chunk(total: int, most: int) -> int:
    """The largest size of chunks up to ``most`` that divides ``total``, so that one compiled loss serves them all.

    Where only sizes below half of ``most`` divide it: the size of the fewest chunks, of which the last is smaller.
    """
    fewest = -(-total // most)
    count = next((count for count in range(fewest, 2 * fewest) if total % count == 0), fewest)
    return -(-total // count)


def _own_forward(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """In place of body and head, where they are no split: the whole model, and a head that does nothing."""

    def own_logits(ids_MT: Tensor) -> Tensor:
        logits_MTV: Tensor = model(input_ids=ids_MT, use_cache=False).logits
        return logits_MTV

    def identity(logits_1NV: Tensor) -> Tensor:
        return logits_1NV

    return own_logits, identity


def _distillation(
    head: Callable[[Tensor], Tensor], teacher: nn.Module, *, weight: float, temperature: float
) -> Distillation:
    """The teacher's body, and the two losses of a chunk from both models' hidden states."""
    teacher_body, teacher_head = split_head(teacher.eval()) or _own_forward(teacher)

    def summed_losses(hidden_1ND: Tensor, targets_1N: Tensor, taught_1NE: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_1ND).float().flatten(0, 1)
        log_child_NV = logits_NV.log_softmax(dim=-1)
        nats = F.nll_loss(log_child_NV, targets_1N.flatten(), reduction="sum")
        with torch.no_grad():
            log_taught_NV = (teacher_head(taught_1NE).float().flatten(0, 1) / temperature).log_softmax(dim=-1)
        if temperature != 1:
            log_child_NV = (logits_NV / temperature).log_softmax(dim=-1)
        return nats, F.kl_div(log_child_NV, log_taught_NV, reduction="sum", log_target=True)

    return Distillation(
        body=teacher_body,
        summed_losses=summed_losses,
        token_weight=1 - weight,
        divergence_weight=weight * temperature**2,
    )


def accumulate_gradient(functions: LossFunctions, rows: Tensor, choices: Choices) -> Losses:
    """Add the gradient of the mean loss of all rows to the ``.grad`` of the parameters that train.

    Every token weighs the same, however the rows fall into micro-batches and chunks.

    Args:
        functions: from ``prepare_loss``.
        rows: int64 (B, T + 1) token ids on the device; position t predicts t + 1.
        choices: micro-batch and precision.

    Returns:
        The mean losses in nats per token.
    """
    num_tokens = rows.shape[0] * (rows.shape[1] - 1)
    distillation = functions.distillation
    if functions.narrow_output:
        functions.narrow_output.renew()
    token_total = torch.zeros((), device=rows.device, dtype=torch.float64)
    distill_total = torch.zeros_like(token_total)
    for rows_MT in rows.split(choices.micro_batch):
        ids_MT, targets_MT = rows_MT[:, :-1], rows_MT[:, 1:]
        with autocast(choices):
            hidden_MTD = functions.body(ids_MT)
        given = [hidden_MTD.detach().flatten(0, 1).unsqueeze(0), targets_MT.reshape(1, -1)]
        if distillation:
            with torch.no_grad(), autocast(choices):
                given.append(distillation.body(ids_MT).flatten(0, 1).unsqueeze(0))
        gradients = []
        size = even_chunk(targets_MT.numel(), functions.positions_at_once)
        for chunk_1CD, targets_1C, *taught in zip(*(each.split(size, dim=1) for each in given), strict=True):
            leaf_1CD = chunk_1CD.detach().requires_grad_(hidden_MTD.requires_grad)
            with autocast(choices):
                if distillation:
                    nats, divergence = distillation.summed_losses(leaf_1CD, targets_1C, *taught)
                    loss = distillation.token_weight * nats + distillation.divergence_weight * divergence
                    distill_total += divergence.detach()
                else:
                    loss = nats = functions.summed_loss(leaf_1CD, targets_1C)
            (loss / num_tokens).backward()
            gradients.append(leaf_1CD.grad)
            token_total += nats.detach()
        if hidden_MTD.requires_grad:  # not where the whole body is frozen
            hidden_MTD.backward(torch.cat(gradients, dim=1).view_as(hidden_MTD))
    return Losses(
        token_nats=float(token_total / num_tokens),
        distill_nats=float(distill_total / num_tokens) if distillation else None,
    )
