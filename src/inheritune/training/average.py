"""An exponential moving average of the weights, its half-life counted in tokens."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from inheritune.errors import TrainingError


class WeightAverage:
    """The average of all trainable float parameters, float32, on their device; a tied parameter once.

    It starts from the initial weights, and they fade like all others: after n tokens they count
    0.5 ** (n / half-life). The shares add up to 1 at every step, so nothing is divided by 1 - decay ** n as in Adam.
    That division would leave the initial weights out, and hand their share to the first steps, those of the warm-up;
    here the initial weights are inherited, not random, and better than those. What stays is the lag behind weights
    that still move: read the average after several half-lives.

    Source: NeMo and Composer (the same start; Composer's half-life); arXiv:2508.00180 for the lag.
    """

    def __init__(self, model: nn.Module, half_life_tokens: int) -> None:
        self.half_life_tokens = half_life_tokens
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.is_floating_point()
        }

    def update(self, model: nn.Module, num_tokens: int) -> None:
        """Draw the average towards the weights, which ``num_tokens`` more tokens have made."""
        share = -math.expm1(-math.log(2) * num_tokens / self.half_life_tokens)  # 1 - decay, exact for a small step too
        weights = [parameter.detach().float() for parameter in self._parameters(model)]
        torch._foreach_lerp_(list(self._averages.values()), weights, share)

    def tensors(self) -> dict[str, Tensor]:
        """Parameter name to its average: the tensors themselves, not copies."""
        return dict(self._averages)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the ``tensors`` of a checkpoint, bit for bit.

        Raises:
            TrainingError: they are the average of another model.
        """
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in self._averages.items()}:
            raise TrainingError(
                "the saved weight average holds other tensors than the model it should resume. "
                "Delete the stage's folder, or choose another run_dir."
            )
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the block; after it the trained ones are back, bit for bit.

        For scoring and saving: weights and average trade places without a copy, so do not train inside.
        """
        parameters = self._parameters(model)
        trained = [parameter.data for parameter in parameters]
        try:
            for parameter, average in zip(parameters, self._averages.values(), strict=True):
                parameter.data = average.to(parameter.dtype)
            yield
        finally:
            for parameter, weights in zip(parameters, trained, strict=True):
                parameter.data = weights

    def _parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The averaged parameters, in the order of the averages."""
        named = dict(model.named_parameters())
        return [named[name] for name in self._averages]
