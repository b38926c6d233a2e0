"""The one split of a causal language model into body and head (law 9).

Loss and scoring want the hidden states first and the logits later, a few positions at a time. Many models scale or
cap their logits in ``forward``, so multiplying by the output matrix is not enough. Here the head *is* the model's own
``forward``, with its body replaced by a stand-in that hands the given hidden states through: whatever the model does
between body and logits is done by its own code, without a table of architectures.
"""

# B batch, T positions, D hidden size, V vocabulary.

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _HiddenStates:
    """What a body returns, when all that is known are its last hidden states; every other field is None."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        self.last_hidden_state = hidden_BTD

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _HandThrough(nn.Module):
    """Stands where the body was; gives its input embeddings back as the last hidden states."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.part_names = frozenset(body._modules)

    def __getattr__(self, name: str) -> Any:
        """A model may call a part of its body by name (OPT: ``model.decoder``): that part is this one, too."""
        if name in self.__dict__.get("part_names", ()):
            return self
        return super().__getattr__(name)

    def forward(self, *_positional: Any, inputs_embeds: Tensor, **_named: Any) -> _HiddenStates:
        return _HiddenStates(inputs_embeds)


class Body(nn.Module):
    """Token ids (B, T) to last hidden states (B, T, D), final norm included."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Hidden states of some ids."""
        hidden_BTD: Tensor = self.body(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTD


class Head(nn.Module):
    """Hidden states (..., T, D) to logits (..., T, V), scaled and capped as the model does it."""

    def __init__(self, model: nn.Module, body_name: str) -> None:
        super().__init__()
        body = model._modules[body_name]
        assert body is not None
        bodiless = copy.copy(model)
        bodiless._modules = {**model._modules, body_name: _HandThrough(body)}
        self.bodiless = bodiless

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Logits of some hidden states."""
        logits_BTV: Tensor = self.bodiless(inputs_embeds=hidden_BTD, use_cache=False).logits
        return logits_BTV


class SplitModel(NamedTuple):
    """Body and head of one model; they share its parameters."""

    body: Body
    head: Head


def _vocabulary_size(model: Any) -> int:
    """Rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def split_head(model: nn.Module) -> SplitModel | None:
    """Body and head whose composition is the model, checked against the model's own logits.

    Args:
        model: a Hugging Face causal language model on any device.

    Returns:
        The split, or None where head(body(ids)) is not bit for bit the model's own logits (the caller then
        uses the model's own forward, and records that).
    """
    body_name = getattr(model, "base_model_prefix", "")
    body = model._modules.get(body_name)
    if body is None:
        return None
    split = SplitModel(Body(body), Head(model, body_name))
    device = next(model.parameters()).device
    ids_BT = torch.arange(2 * 8, device=device).reshape(2, 8) % _vocabulary_size(model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            own_BTV = model(input_ids=ids_BT, use_cache=False).logits
            split_BTV = split.head(split.body(ids_BT))
    except (TypeError, AttributeError, ValueError):
        return None
    finally:
        model.train(was_training)
    return split if torch.equal(own_BTV, split_BTV) else None
