"""AdamW with small moments: bfloat16 (4 bytes per parameter for both) or 8 bits (2 bytes and a bit), float32 inside.

A step takes a slice of a parameter at a time: the moments are widened, used, and made small again, so that no more than
one slice is ever wide. The weights stay float32, and rounding is to the nearest, so a step is a function of its inputs
alone and repeats bit for bit.

Source: arXiv:2110.02861 (8 bits by blocks, each with its own largest value, on a scale that is finer near zero);
arXiv:2412.19437, section 3.3 (bfloat16 moments in a large training run).
"""

# N elements of a slice, K blocks of it.

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from inheritune.errors import RecipeError

BLOCK = 256
"""Elements that share one largest value."""

SLICE = 2**24
"""Elements that are wide at once: 64 MiB for each of a few float32 values; a multiple of ``BLOCK``."""

SMALLEST = 4096
"""Elements of a parameter from which its moments are made small: norms and biases are not worth it."""

LARGEST_BETA2 = 0.99
"""Above it bfloat16 cannot tell a second moment from what it was one step ago, and it stands still."""

STANDING = 10
"""Codes of a first moment below which a tenth less, what one step without a gradient leaves, is the same code."""

MomentFormat = Literal["float32", "bfloat16", "8bit"]

MOMENT_BYTES = {"float32": 8.0, "bfloat16": 4.0, "8bit": 2 + 2 * 4 / BLOCK}
"""Of both moments, per parameter; small parameters are neglected."""


def _by_block(values_N: Tensor) -> Tensor:
    """Values as (K, BLOCK), the last block filled up with zeros."""
    missing = -values_N.numel() % BLOCK
    return torch.nn.functional.pad(values_N, (0, missing)).view(-1, BLOCK)


def quantise_signed(values_N: Tensor, before_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float32 (N) to int8 codes (N) and the largest size of each block (K); a code is 127 times the square root of its
    value over the largest, so small values keep their sign and size.

    A code goes to the nearest, but for one below ``STANDING`` whose value has shrunk from ``before_N``: it goes down,
    for to the nearest it would stand still and move its weight for ever, though no gradient comes any more.
    """
    blocks_KB = _by_block(values_N)
    largest_K = blocks_KB.abs().amax(dim=1)
    share_KB = blocks_KB / largest_K.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    root_KB = share_KB.abs().sqrt() * 127
    codes_KB = root_KB.round()
    if before_N is not None:
        shrinks_KB = blocks_KB.abs() < _by_block(before_N).abs()
        codes_KB = torch.where(shrinks_KB & (root_KB < STANDING), root_KB.floor(), codes_KB)
    codes_KB = codes_KB * share_KB.sign()
    return codes_KB.to(torch.int8).view(-1)[: values_N.numel()], largest_K


def restore_signed(codes_N: Tensor, largest_K: Tensor) -> Tensor:
    """The inverse, float32 (N)."""
    share_KB = _by_block(codes_N.float() / 127)
    return (share_KB * share_KB.abs() * largest_K[:, None]).view(-1)[: codes_N.numel()]


def quantise_squares(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (N), none negative, to uint8 codes (N) and the largest of each block (K).

    A code is 255 times the fourth root of its value over the largest, and at least 1 where the value is above 0: what
    AdamW divides by is never rounded to nothing.
    """
    blocks_KB = _by_block(values_N)
    largest_K = blocks_KB.amax(dim=1)
    share_KB = blocks_KB / largest_K.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes_KB = (share_KB.sqrt().sqrt() * 255).round()
    codes_KB = torch.where(share_KB > 0, codes_KB.clamp(min=1), codes_KB)
    return codes_KB.to(torch.uint8).view(-1)[: values_N.numel()], largest_K


def restore_squares(codes_N: Tensor, largest_K: Tensor) -> Tensor:
    """The inverse, float32 (N)."""
    root_KB = _by_block(codes_N.float() / 255).square()
    return (root_KB * root_KB * largest_K[:, None]).view(-1)[: codes_N.numel()]


def _advance(
    weight_N: Tensor, gradient_N: Tensor, first_N: Tensor, second_N: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """One AdamW step of a slice in float32: the weight in place, the new moments back."""
    rate, decay, beta1, beta2, eps, first_bias, second_bias = numbers.unbind()
    first_N = first_N + (gradient_N - first_N) * (1 - beta1)
    second_N = second_N * beta2 + gradient_N.square() * (1 - beta2)
    step_N = first_N / first_bias / ((second_N / second_bias).sqrt() + eps)
    weight_N.mul_(1 - rate * decay).sub_(rate * step_N)
    return first_N, second_N


def _advance_floats(weight_N: Tensor, gradient_N: Tensor, first_N: Tensor, second_N: Tensor, numbers: Tensor) -> None:
    first, second = _advance(weight_N, gradient_N, first_N.float(), second_N.float(), numbers)
    first_N.copy_(first)
    second_N.copy_(second)


def _advance_8bit(
    weight_N: Tensor,
    gradient_N: Tensor,
    first_N: Tensor,
    first_K: Tensor,
    second_N: Tensor,
    second_K: Tensor,
    numbers: Tensor,
) -> None:
    wide = restore_signed(first_N, first_K), restore_squares(second_N, second_K)
    first, second = _advance(weight_N, gradient_N, *wide, numbers)
    for place, value in zip(
        (first_N, first_K, second_N, second_K),
        (*quantise_signed(first, wide[0]), *quantise_squares(second)),
        strict=True,
    ):
        place.copy_(value)


class SmallAdamW(torch.optim.Optimizer):
    """AdamW as torch's, with moments in bfloat16 or 8 bits.

    The state of a parameter: ``exp_avg`` and ``exp_avg_sq`` in the parameter's shape; with 8 bits ``exp_avg_scale`` and
    ``exp_avg_sq_scale``, float32, one for every 256 elements; ``step``. Parameters of less than 4,096 elements keep
    float32 moments.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        moments: Literal["bfloat16", "8bit"],
        eps: float = 1e-8,
        compiled: bool = False,
    ) -> None:
        """
        Args:
            groups: each with ``params`` and ``weight_decay``; the rate is set later, as ``lr``.
            betas: decays of the moments.
            moments: how they are kept.
            eps: added to what a step is divided by.
            compiled: whether the step of a slice is compiled.

        Raises:
            RecipeError: beta2 is so near 1 that a small moment would stand still.
        """
        if betas[1] > LARGEST_BETA2:
            raise RecipeError(
                f"train.moments: {moments} cannot follow a beta2 of {betas[1]:.6g}; it would stand still above "
                f"{LARGEST_BETA2}. Lower train.beta2 (or train.beta2_half_life), or set train.moments: float32."
            )
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.moments = moments
        self._advance_by: dict[bool, Any] = {False: _advance_floats, True: _advance_8bit}
        if compiled:
            self._advance_by = {kind: torch.compile(each, dynamic=True) for kind, each in self._advance_by.items()}

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        kind = self.moments if parameter.numel() >= SMALLEST else "float32"
        dtypes = {
            "float32": (torch.float32, torch.float32),
            "bfloat16": (torch.bfloat16, torch.bfloat16),
            "8bit": (torch.int8, torch.uint8),
        }[kind]
        state = {
            name: torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
            for name, dtype in zip(("exp_avg", "exp_avg_sq"), dtypes, strict=True)
        }
        if kind == "8bit":
            blocks = -(-parameter.numel() // BLOCK)
            for name in ("exp_avg_scale", "exp_avg_sq_scale"):
                state[name] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        return {**state, "step": torch.zeros((), dtype=torch.float32)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._begin(parameter))
        if state["step"].is_cuda:
            state["step"] = state["step"].cpu()  # as a checkpoint gives it back; read at every step
        state["step"] += 1
        count, (beta1, beta2) = float(state["step"]), group["betas"]
        biases = 1 - beta1**count, 1 - beta2**count
        numbers = torch.tensor(
            [group["lr"], group["weight_decay"], beta1, beta2, group["eps"], *biases], device=parameter.device
        )
        in_codes = "exp_avg_scale" in state
        names = (
            ["exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"] if in_codes else ["exp_avg", "exp_avg_sq"]
        )
        assert parameter.is_contiguous() and parameter.grad is not None
        whole = parameter.view(-1), parameter.grad.contiguous().view(-1), *(state[name].view(-1) for name in names)
        for start in range(0, parameter.numel(), SLICE):
            each = [
                tensor[start // BLOCK : -(-(start + SLICE) // BLOCK)]
                if name.endswith("scale")
                else tensor[start : start + SLICE]
                for name, tensor in zip(("weight", "gradient", *names), whole, strict=True)
            ]
            self._advance_by[in_codes](*each, numbers)
