"""What the step's own matrix products take when each is timed alone."""

# N tokens of a step, I inputs and O outputs of a weight, A heads of all sequences, T positions, D size of a head.

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inheritune.machine.allocator import keep_freed_memory
from inheritune.machine.probe import best_device
from speed.shapes import Shape

ROUNDS = 7


def seconds_of(product: Callable[[], Tensor]) -> float:
    """Median time of a product, after one to warm up."""
    taken = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        product()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def own_time(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of all matrix products of one step, forward and backward, by kind.

    Attention's six products are timed over the whole square and counted half, since half of it is masked.
    """
    keep_freed_memory()
    device = best_device()

    def values(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device).to(dtype)

    tokens, seconds = shape.micro_tokens, {}
    for name, (inputs, outputs, count) in shape.linears().items():
        x_NI, weight_OI, upstream_NO = values(tokens, inputs), values(outputs, inputs), values(tokens, outputs)
        forward_NO, backward_NI, weight_gradient_OI = map(torch.empty_like, (upstream_NO, x_NI, weight_OI))
        seconds[name] = (
            shape.micro_batches
            * count
            * (
                seconds_of(lambda a=x_NI, b=weight_OI, c=forward_NO: torch.mm(a, b.t(), out=c))
                + seconds_of(lambda a=upstream_NO, b=weight_OI, c=backward_NI: torch.mm(a, b, out=c))
                + seconds_of(lambda a=upstream_NO, b=x_NI, c=weight_gradient_OI: torch.mm(a.t(), b, out=c))
            )
        )
        del x_NI, weight_OI, upstream_NO, forward_NO, backward_NI, weight_gradient_OI
    attends, length, size = shape.micro_batch * shape.heads, shape.sequence_length, shape.hidden_size // shape.heads
    side_ATD, square_ATT = values(attends, length, size), values(attends, length, length)
    into_ATT, into_ATD = torch.empty_like(square_ATT), torch.empty_like(side_ATD)
    to_square = seconds_of(lambda: torch.bmm(side_ATD, side_ATD.transpose(1, 2), out=into_ATT))
    to_side = seconds_of(lambda: torch.bmm(square_ATT, side_ATD, out=into_ATD))
    turned = seconds_of(lambda: torch.bmm(square_ATT.transpose(1, 2), side_ATD, out=into_ATD))
    # forward: scores, mix; backward: of the weights and the scores (to a square and two sides), of the values
    seconds["attention, causal half"] = (
        shape.micro_batches * shape.depth * 0.5 * (2 * to_square + 2 * to_side + 2 * turned)
    )
    return {"dtype": str(dtype).removeprefix("torch."), "seconds": seconds, "sum_s": sum(seconds.values())}
