"""A model that is only run forward, in less of the device's memory: matrices in bfloat16, layers in main memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def narrow_matrices(model: Any) -> None:
    """Keep in bfloat16 what autocast to bfloat16 makes bfloat16 at every use: weights and biases of linear layers.

    Under autocast the model computes bit for bit what it computed, with half of the memory and without the casts. A
    head that is tied to the embedding stays: a lookup is not cast.
    """
    table = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and module.weight is not table:
            module.to(torch.bfloat16)


def offload(model: nn.Module, layers: Sequence[nn.Module], device: torch.device) -> None:
    """Move a model to a device, but for some layers, whose weights come to it for their own forward pass alone.

    Args:
        model: run forward only, without gradients and not compiled; changed in place.
        layers: modules of it, none within another; their weights stay in main memory, pinned for CUDA.
        device: where all is computed.
    """
    kept = [parameter for layer in layers for parameter in layer.parameters()]
    at_home: dict[nn.Parameter, Tensor] = {}
    for parameter in kept:
        home = parameter.data.cpu()
        at_home[parameter] = home.pin_memory() if device.type == "cuda" else home
        parameter.data = torch.empty(0, dtype=home.dtype)  # nothing to move
    model.to(device)

    def bring(layer: nn.Module, _given: Any) -> None:
        for parameter in layer.parameters():
            parameter.data = at_home[parameter].to(device, non_blocking=True, copy=True)

    def let_go(layer: nn.Module, _given: Any, _result: Any) -> None:
        for parameter in layer.parameters():
            parameter.data = at_home[parameter]

    for parameter in kept:
        parameter.data = at_home[parameter]
    for layer in layers:
        layer.register_forward_pre_hook(bring)
        layer.register_forward_hook(let_go)
