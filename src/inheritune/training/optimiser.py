"""AdamW with weight decay on matrices only; which parameters it leaves alone; and the model's dropout."""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from inheritune.errors import RecipeError
from inheritune.training.moments import MomentFormat, SmallAdamW

NEVER_DROPPED = ("layer", "path")
"""Words in the name of a probability that drops whole layers (layerdrop, drop_path), which is another thing."""


def build_optimiser(
    model: nn.Module,
    *,
    weight_decay: float,
    beta2: float,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    moments: MomentFormat = "float32",
    compiled: bool = False,
) -> torch.optim.Optimizer:
    """AdamW, torch's fused one or one with small moments; matrices decay, norms, biases and scales do not.

    A tied embedding is one parameter and is updated once; a frozen one is left out. The learning rate is set at every
    step, by ``set_learning_rate``.

    Args:
        model: its parameters are taken in their own order.
        weight_decay: of matrices.
        beta2: decay of the second moment, per step.
        lr_scale: parameter name to the factor on its learning rate.
        moments: how both moments are kept.
        compiled: whether the step of small moments is compiled; torch's is one kernel anyway.

    Raises:
        RecipeError: small moments and a ``beta2`` that they cannot follow.

    Returns:
        The optimiser. Its groups are those that decay, then those that do not, each by rising ``lr_scale``; a group
        without parameters is left out.
    """
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((parameter.ndim < 2, float(lr_scale(name))), []).append(parameter)
    groups = [
        {"params": members[key], "weight_decay": 0.0 if key[0] else weight_decay, "lr_scale": key[1]}
        for key in sorted(members)
    ]
    if moments == "float32":
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)
    return SmallAdamW(groups, betas=(0.9, beta2), moments=moments, compiled=compiled)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group ``rate`` times its own scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


def beta2_of_half_life(half_life_tokens: int, batch_tokens: int) -> float:
    """AdamW's beta2 per step, from the tokens after which a squared gradient counts half.

    Source: arXiv:2507.07101 (kept fixed in tokens, one setting serves every batch size).
    """
    return float(0.5 ** (batch_tokens / half_life_tokens))


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take the parameters that a pattern matches out of training.

    Args:
        model: ``requires_grad`` of its parameters is set.
        patterns: as file names are matched, on parameter names: ``model.embed_tokens.*``, ``*.layers.0.*``. A tied
            parameter is one parameter, matched under any of its names.

    Returns:
        The names of all that the patterns match, in the model's order, a tied parameter once.

    Raises:
        RecipeError: a pattern that matches nothing, or nothing is left to train; the model is as it was.
    """
    every_name = dict(model.named_parameters(remove_duplicate=False))
    matched: set[nn.Parameter] = set()
    for pattern in patterns:
        hits = {parameter for name, parameter in every_name.items() if fnmatchcase(name, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, every_name, n=1, cutoff=0.0)[0]
            raise RecipeError(
                f"train.freeze: {pattern!r} matches no parameter. Nearest is {near!r}; a pattern covers the whole "
                "name, and * stands for any part of it."
            )
        matched |= hits
    if all(parameter in matched or not parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"train.freeze: {list(patterns)} leaves nothing to train. Take a pattern out.")
    for parameter in matched:
        parameter.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if parameter in matched]


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of training mode to one probability; layer drop and router noise are always off.

    At 0 training mode computes what evaluation mode computes. Published configs carry dropout from another age
    (GPT-2: 0.1, OPT: layer drop); a model trained for one or a few passes is better without, and the paper trains
    without. What takes the probability: dropout modules (GPT-2, GPT-NeoX, Phi-3: residuals) and the numbers that a
    module hands to a dropout function (attention in nearly all families, OPT: residuals too). The config in the saved
    folder is not touched.

    Args:
        model: changed in place; set it before its blocks are compiled.
        probability: in [0, 1).

    Raises:
        RecipeError: a probability above 0 for a model without any dropout (Mamba).
    """
    places = 0
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability
            places += 1
        for name, value in list(vars(module).items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                continue
            if "jitter" in name or ("drop" in name and any(word in name for word in NEVER_DROPPED)):
                setattr(module, name, 0.0)
            elif "drop" in name:
                setattr(module, name, probability)
                places += 1
    if probability and not places:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise RecipeError(
            f"train.dropout: {probability} is asked for, and a {kind} has no place for dropout. "
            "Set train.dropout: 0; a stronger train.weight_decay works for every model."
        )
