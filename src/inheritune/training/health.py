"""Steps that must not be taken: losses and gradients that are not finite, and losses that leap.

The rule for a leap is OLMo-core's: more than 6 standard deviations above the mean of the last 128 losses, as soon as
half of them are there. Gradient norms are not judged by it, since they are clipped anyway and vary far more at small
batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WINDOW_STEPS = 128
FEWEST_STEPS = 64
SIGMAS = 6.0

MOST_SETBACKS = 8
"""Steps left out in a row, or goings back to one place, after which a run stops."""


def trouble(loss_nats: float, grad_norm: float, recent_nats: Sequence[float]) -> str | None:
    """Why a step must not be taken, in words; None where it may.

    Args:
        loss_nats: of this step, nats per token.
        grad_norm: before clipping.
        recent_nats: losses of the last good steps, at most ``WINDOW_STEPS``.

    Source: OLMo-core, SkipStepOptimizer (128 steps, 6 sigma).
    """
    if not math.isfinite(loss_nats):
        return f"the loss is {loss_nats}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    if len(recent_nats) >= FEWEST_STEPS:
        mean, sigma = float(np.mean(recent_nats)), float(np.std(recent_nats))
        if sigma > 0 and loss_nats > mean + SIGMAS * sigma:
            return (
                f"the loss leapt to {loss_nats:.4f}, more than {SIGMAS:g} sigma above the last {len(recent_nats)} "
                f"({mean:.4f}, sigma {sigma:.4f})"
            )
    return None


def with_latest(recent_nats: Sequence[float], loss_nats: float) -> tuple[float, ...]:
    """The window after one more good step."""
    return (*recent_nats, loss_nats)[-WINDOW_STEPS:]


def culprit(model: nn.Module, ids_BT: Tensor) -> str:
    """Which layer and tensor the trouble comes from: the first weight, output or gradient that is not finite.

    Args:
        model: with the gradients of the bad step still there.
        ids_BT: token ids of the bad step, int64 (B, T); they are run one by one.
    """
    for name, parameter in model.named_parameters():
        if bad := _not_finite(parameter):
            return f"weight {name}: {bad}"
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _watching(model) as found:
        for ids_1T in ids_BT.split(1):
            if not found:
                model(input_ids=ids_1T, use_cache=False)
    if found:
        return f"output of {found[0][0]}: {found[0][1]}"
    gradients = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    for name, gradient in reversed(gradients):  # backward comes from the head: the last parameter is met first
        if bad := _not_finite(gradient):
            return f"gradient of {name}: {bad}"
    if not gradients:
        return "no weight and no output is at fault: all are finite"
    name, largest = max(((name, float(gradient.abs().max())) for name, gradient in gradients), key=lambda pair: pair[1])
    return f"every weight, output and gradient is finite; the largest gradient is that of {name} ({largest:.3g})"


def _not_finite(tensor: Tensor) -> str | None:
    """How many of a tensor's elements are not finite, in words; None where all are."""
    bad = int((~torch.isfinite(tensor)).sum())
    return f"{bad} of {tensor.numel()} elements are not finite" if bad else None


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Collect the names of modules whose output is not finite, in the order in which they end."""
    found: list[tuple[str, str]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            for tensor in tensors:
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and (bad := _not_finite(tensor)):
                    found.append((name, bad))
                    return

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
