"""Loss and gradient of one optimiser step: micro-batches, and the head by chunks.

The logits of a large vocabulary are the largest tensor of a step. They are made for a few positions at a time, turned
into a loss and a gradient of the hidden states at once, and forgotten; then the body goes backward once.
"""

# B sequences of the step, M of one micro-batch, T positions, D hidden size, V vocabulary.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inheritune.machine.head import split_head
from inheritune.machine.probe import Choices, autocast
from inheritune.surgery.anatomy import layer_modules

LOGITS_AT_ONCE = 2**24
"""Elements of the largest logits tensor: 64 MiB in float32."""


@dataclass(frozen=True)
class LossFunctions:
    """The model as the step uses it."""

    body: Callable[[Tensor], Tensor]
    """Token ids (M, T) to hidden states (M, T, D), or to logits (M, T, V) on the "model" path."""
    summed_loss: Callable[[Tensor, Tensor], Tensor]
    """Hidden states (1, N, D), or logits, and targets (1, N) to the summed loss in nats, float32."""
    positions_at_once: int
    """Positions N of one chunk."""


def prepare_loss(model: nn.Module, choices: Choices, vocabulary_size: int) -> tuple[LossFunctions, Choices]:
    """Split the model once, compile its blocks where chosen; the path taken comes back in the choices."""
    split = split_head(model) if choices.loss_path == "split" else None

    def own_logits(ids_MT: Tensor) -> Tensor:
        logits_MTV: Tensor = model(input_ids=ids_MT, use_cache=False).logits
        return logits_MTV

    def identity(logits_1NV: Tensor) -> Tensor:
        return logits_1NV

    body: Callable[[Tensor], Tensor] = split.body if split else own_logits
    head: Callable[[Tensor], Tensor] = split.head if split else identity

    def summed_loss(hidden_1ND: Tensor, targets_1N: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden_1ND).float().flatten(0, 1), targets_1N.flatten(), reduction="sum")

    if choices.compile:
        layers = layer_modules(model)
        compiler: Any = torch._dynamo.config
        compiler.recompile_limit = max(compiler.recompile_limit, 4 * len(layers))
        for layer in layers:  # one compiled block serves every layer of its kind, at every depth
            layer.compile(dynamic=False)
        summed_loss = torch.compile(summed_loss, dynamic=False)
    positions = max(1, LOGITS_AT_ONCE // vocabulary_size)
    taken = choices if split else Choices(**{**choices.__dict__, "loss_path": "model"})
    return LossFunctions(body, summed_loss, positions), taken


def accumulate_gradient(functions: LossFunctions, rows: Tensor, choices: Choices) -> float:
    """Add the gradient of the mean token loss of all rows to the parameters' ``.grad``.

    Every token weighs the same, however the rows fall into micro-batches and chunks.

    Args:
        functions: from ``prepare_loss``.
        rows: int64 (B, T + 1) token ids on the device; position t predicts t + 1.
        choices: micro-batch and precision.

    Returns:
        The mean loss in nats per token.
    """
    num_tokens = rows.shape[0] * (rows.shape[1] - 1)
    total = torch.zeros((), device=rows.device, dtype=torch.float64)
    for rows_MT in rows.split(choices.micro_batch):
        ids_MT, targets_MT = rows_MT[:, :-1], rows_MT[:, 1:]
        with autocast(choices):
            hidden_MTD = functions.body(ids_MT)
        hidden_1ND = hidden_MTD.detach().flatten(0, 1).unsqueeze(0)
        targets_1N = targets_MT.reshape(1, -1)
        gradients = []
        for chunk_1CD, targets_1C in zip(
            hidden_1ND.split(functions.positions_at_once, dim=1),
            targets_1N.split(functions.positions_at_once, dim=1),
            strict=True,
        ):
            leaf_1CD = chunk_1CD.detach().requires_grad_()
            with autocast(choices):
                loss = functions.summed_loss(leaf_1CD, targets_1C)
            (loss / num_tokens).backward()
            gradients.append(leaf_1CD.grad)
            total += loss.detach()
        hidden_MTD.backward(torch.cat(gradients, dim=1).view_as(hidden_MTD))
    return float(total / num_tokens)
