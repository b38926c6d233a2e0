"""Where a model's values stop being finite."""

from typing import Any

import torch
from torch import Tensor, nn

TRIED_IDS = 8
"""Tokens that the model is run on: the first of its vocabulary."""


def first_damage(model: nn.Module) -> str | None:
    """The name of the first module without parts that gives NaN or infinity on a few ids; None where none does."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _given: Any, out: Any) -> None:
            for each in out if isinstance(out, tuple | list) else (out,):
                if not found and isinstance(each, Tensor) and not torch.isfinite(each).all():
                    found.append(name)

        return look

    parts = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in parts]
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(TRIED_IDS, device=next(model.parameters()).device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def said_of_damage(model: nn.Module) -> str:
    """What to say of a model whose loss is not finite."""
    where = first_damage(model)
    if where:
        return f"Values stop being finite in {where}: look at its weights with `inheritune doctor MODEL`."
    return "The weights give finite values on other ids: look at the model with another text, in float32."
