"""Model FLOPs: what one token of training must compute, counted in two short forward passes of the model itself.

Products of matrices count 2 per multiply-add, the backward twice the forward, and attention half of its square where it
is fused, since half of it is masked. What is computed again to save memory does not count, nor do norms and other cheap
things: with these conventions the figure over a machine's peak is the model FLOP utilisation (arXiv:2204.02311,
appendix B).
"""

# T positions.

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


class _AttentionCount(TorchFunctionMode):
    """Counts the two products of each fused attention, half where it is causal, and leaves them out."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        *heads, length, size = query.shape
        pairs = torch.Size(heads).numel() * length * key.shape[-2] / 2  # every mask of a causal model hides half
        self.flops += 2 * pairs * (size + value.shape[-1])
        return query.new_zeros(*heads, length, value.shape[-1])


LENGTH = 256
"""Tokens of the longer of the two passes; half of it is a multiple of the chunks that some layers pad to."""


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one token, forward and backward."""

    per_token: float
    is_counted: bool
    """False where the model could not be run for it: then 6 per parameter of a matrix."""


def training_flops(model: Any, sequence_length: int) -> TokenFlops:
    """Model FLOPs of forward and backward, per token.

    Args:
        model: a Hugging Face causal language model on any device, not compiled; it is not changed.
        sequence_length: T. Attention's products grow with it along a line, all others do not, so two short passes tell.

    Attention that a model multiplies out by itself counts as a whole square, a sliding window as if it had none, and a
    frozen weight as if it were trained.
    """
    longer = min(LENGTH, sequence_length)
    was_training = model.training
    model.eval()
    try:
        per_token = _forward_flops(model, longer)
        if sequence_length > longer:
            slope = (per_token - _forward_flops(model, longer // 2)) / (longer - longer // 2)
            per_token += max(0.0, slope) * (sequence_length - longer)
    except (RuntimeError, ValueError, TypeError):  # no memory for it, or a kernel that does not like to be watched
        table = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        looked_up = 0 if head is not None and head.weight is table else table.numel()
        matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() >= 2)
        return TokenFlops(6.0 * (matrices - looked_up), is_counted=False)
    finally:
        model.train(was_training)
    return TokenFlops(3 * per_token, is_counted=True)


def _forward_flops(model: Any, length: int) -> float:
    """FLOPs per token of one forward pass."""
    ids_1T = torch.zeros(1, length, dtype=torch.long, device=model.device)
    attention, products = _AttentionCount(), FlopCounterMode(display=False)
    with torch.no_grad(), products, attention:
        model(input_ids=ids_1T, use_cache=False)
    return (float(products.get_total_flops()) + attention.flops) / length
