"""AdamW with weight decay on matrices only, and a model without dropout."""

import torch
from torch import nn


def build_optimiser(model: nn.Module, *, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """Fused AdamW; tensors of two or more dimensions decay, norms, biases and scales do not.

    A tied embedding is one parameter and is updated once. The learning rate is set by the loop at every step.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=(0.9, beta2), fused=True)


def switch_off_dropout(model: nn.Module) -> None:
    """Make training mode compute what evaluation mode computes: no dropout, layer drop or router noise.

    Published configs carry dropout from another age (GPT-2: 0.1, OPT: layer drop); a model trained for one or a
    few passes is better without, and the paper trains without. The config in the saved folder is not touched.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
