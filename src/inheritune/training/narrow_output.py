"""One bfloat16 copy of the output matrix for all chunks of a step.

Autocast alone would cast the whole matrix for every chunk of the loss, and widen its whole gradient before adding it:
for a large vocabulary that moves more bytes than the chunk's logits have. Here the matrix is cast once a step, and each
chunk's gradient is widened while it is added. Rounding and order are as before, so no bit changes.
"""

# V vocabulary, D hidden size.

import copy
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.machine.head import Head


def _add_widened(total_VD: Tensor, part_VD: Tensor) -> None:
    """Add a bfloat16 part to a float32 total; compiled, without a widened copy of the part."""
    total_VD.add_(part_VD)


class NarrowOutput:
    """The head's output matrix in bfloat16; its gradients go to the ``.grad`` of the float32 matrix at once."""

    def __init__(self, wide: nn.Linear) -> None:
        self._wide_VD = wide.weight
        self._narrow_VD = nn.Parameter(wide.weight.detach().to(torch.bfloat16))
        self._add_widened: Any = torch.compile(_add_widened, dynamic=False)
        self._narrow_VD.register_post_accumulate_grad_hook(self._hand_over)
        self.linear = copy.copy(wide)
        self.linear._parameters = {**wide._parameters, "weight": self._narrow_VD}

    def renew(self) -> None:
        """Take over what the matrix is now, and whether it trains: call it at the beginning of every step."""
        self._narrow_VD.requires_grad_(self._wide_VD.requires_grad)
        self._narrow_VD.grad = None  # of a step that ran out of memory
        with torch.no_grad():
            self._narrow_VD.copy_(self._wide_VD)

    def _hand_over(self, narrow_VD: Tensor) -> None:
        """Widen a chunk's gradient, add it, and forget it."""
        assert narrow_VD.grad is not None
        if self._wide_VD.grad is None:
            self._wide_VD.grad = narrow_VD.grad.to(self._wide_VD.dtype)
        else:
            self._add_widened(self._wide_VD.grad, narrow_VD.grad)
        narrow_VD.grad = None


def narrow_output(model: Any, head: Head) -> NarrowOutput | None:
    """Let a head multiply with a bfloat16 copy of its output matrix, under autocast; the model itself stays as it is.

    Args:
        model: a Hugging Face causal language model.
        head: of its ``split_head``.

    Returns:
        The copy, or None, and the head as it was, where it ends in anything but a plain ``nn.Linear`` of its own or
        does anything else with the matrix, so that some logits of a trial are not the same bit for bit.
    """
    output = model.get_output_embeddings()
    parts = head.bodiless._modules
    name = next((name for name, part in parts.items() if part is output), None)
    if name is None or type(output) is not nn.Linear:
        return None
    narrow = NarrowOutput(output)
    hidden_12D = torch.linspace(-1, 1, 2 * output.in_features, device=output.weight.device).view(1, 2, -1)
    with torch.no_grad(), torch.autocast(hidden_12D.device.type, torch.bfloat16):
        expected_12V = head(hidden_12D)
        parts[name] = narrow.linear
        try:
            is_same = torch.equal(head(hidden_12D), expected_12V)
        except RuntimeError:  # the head multiplies in float32, and does not take a bfloat16 matrix
            is_same = False
    if not is_same:
        parts[name] = output
        return None
    return narrow
