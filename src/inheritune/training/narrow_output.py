"""One bfloat16 copy of the output matrix for all chunks of a step.

Autocast alone would cast the whole matrix for every chunk of the loss, and widen its whole gradient before adding it:
for a large vocabulary that moves more bytes than the chunk's logits have. Here the matrix is cast once a step, and each
chunk's gradient is widened while it is added. Rounding and order are as before, so no bit changes.
"""

# V vocabulary, D hidden size, T positions.

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.machine.head import SplitModel

TRIAL_LENGTH = 8
"""Tokens whose logits tell whether a head takes the copy."""


def _add_widened(total_VD: Tensor, part_VD: Tensor) -> None:
    """Add a bfloat16 part to a float32 total; compiled, without a widened copy of the part."""
    total_VD.add_(part_VD)


def _hand_over(wide_VD: Tensor, add_widened: Any, narrow_VD: Tensor) -> None:
    """Widen a chunk's gradient, add it to the matrix's own, and forget it."""
    assert narrow_VD.grad is not None
    if wide_VD.grad is None:
        wide_VD.grad = narrow_VD.grad.to(wide_VD.dtype)
    else:
        add_widened(wide_VD.grad, narrow_VD.grad)
    narrow_VD.grad = None


class NarrowOutput:
    """The head's output matrix in bfloat16; its gradients go to the ``.grad`` of the float32 matrix at once."""

    def __init__(self, wide: nn.Linear) -> None:
        self._wide_VD = wide.weight
        self._narrow_VD = nn.Parameter(wide.weight.detach().to(torch.bfloat16))
        # A hook that reaches the tensor it hangs on keeps it alive for good: the collector does not see such a ring.
        hand_over = partial(_hand_over, self._wide_VD, torch.compile(_add_widened, dynamic=False))
        self._narrow_VD.register_post_accumulate_grad_hook(hand_over)
        self.linear = copy.copy(wide)
        self.linear._parameters = {**wide._parameters, "weight": self._narrow_VD}

    def renew(self) -> None:
        """Take over what the matrix is now, and whether it trains: call it at the beginning of every step."""
        self._narrow_VD.requires_grad_(self._wide_VD.requires_grad)
        self._narrow_VD.grad = None  # of a step that ran out of memory
        with torch.no_grad():
            self._narrow_VD.copy_(self._wide_VD)


def narrow_output(model: Any, split: SplitModel) -> NarrowOutput | None:
    """Let a head multiply with a bfloat16 copy of its output matrix, under autocast; the model itself stays as it is.

    Args:
        model: a Hugging Face causal language model.
        split: its body and head.

    Returns:
        The copy, or None, and the head as it was, where it ends in anything but a plain ``nn.Linear`` of its own or
        does anything else with the matrix, so that some logits of a trial are not the same bit for bit.
    """
    output = model.get_output_embeddings()
    parts = split.head.bodiless._modules
    name = next((name for name, part in parts.items() if part is output), None)
    if name is None or type(output) is not nn.Linear:
        return None
    narrow = NarrowOutput(output)
    ids_1T = torch.arange(TRIAL_LENGTH, device=output.weight.device)[None] % output.out_features
    was_training = model.training
    model.eval()  # a dropout would draw random numbers
    with torch.no_grad(), torch.autocast(ids_1T.device.type, torch.bfloat16):
        hidden_1TD = split.body(ids_1T)
        expected_1TV = split.head(hidden_1TD)
        parts[name] = narrow.linear
        try:
            is_same = torch.equal(split.head(hidden_1TD), expected_1TV)
        except RuntimeError:  # the head multiplies in float32, and does not take a bfloat16 matrix
            is_same = False
    model.train(was_training)
    if not is_same:
        parts[name] = output
        return None
    return narrow
