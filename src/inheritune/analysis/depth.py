"""Loss against depth before any training: every prefix, every layer left out, and how little each block changes.

One forward pass of a batch keeps the hidden state before and after every layer. A prefix is such a state sent through
the model's own final norm and head; a model without a layer is the state before it sent through the layers behind it.
Both run the model's own forward, with layers that hand their input through: no table of architectures.

Source: block influence, arXiv:2403.03853, eq. 1; angular distance of a block, arXiv:2403.17887, eq. 6, here the mean
over all scored positions, not over last ones.
"""

# B windows of a batch, T positions, D hidden size, N scored positions, L layers, K = L + 1 states.

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inheritune.errors import EvaluationError
from inheritune.evaluation.token_loss import Window, cut_windows, fill_batch, nats_by_chunks
from inheritune.machine.head import split_head
from inheritune.machine.memory import is_out_of_memory
from inheritune.surgery.anatomy import layer_modules

VALUES_AT_ONCE = 2**27
"""Elements of the hidden states that one batch keeps: 512 MiB in float32."""

CLOSE = 1e-5
"""Relative difference of two hidden states that are the same but for the order of sums."""


@dataclass(frozen=True)
class Depths:
    """What the layers of one model do on some documents."""

    full: npt.NDArray[np.float64]
    """(documents, 2): nats and tokens of the whole model."""
    prefixes: npt.NDArray[np.float64]
    """(L + 1, documents, 2): of the first 0, 1, ..., L layers, through final norm and head."""
    without: npt.NDArray[np.float64]
    """(L, documents, 2): of the model without one layer."""
    influence: npt.NDArray[np.float64]
    """(L,): 1 - mean cosine of the hidden states before and after a layer."""
    angles: npt.NDArray[np.float64]
    """(L + 1, L + 1): mean angle, as a share of a half turn, between the state before layer i and the one before
    layer j; the block of layers i to j - 1 changes its input by it. NaN for j <= i."""


class _Replay:
    """A model whose layers can be made to hand through what they are given."""

    def __init__(self, model: Any, ids_1T: Tensor) -> None:
        self.layers = layer_modules(model)
        self.device = ids_1T.device
        self._rests: dict[int, Any] = {}
        split = split_head(model)
        if split is None:
            self.body = model  # a head does not split either where there is NaN, and then the layer is named
            _require_finite(self.states(ids_1T)[0])
            raise EvaluationError(
                f"the head of a {model.config.model_type} does not split from its body, so no depth but the full one "
                "has a loss. Leave depths out (--no-depth)."
            )
        self.body, self.head = split

    def states(self, ids_BT: Tensor) -> tuple[list[Tensor], Any]:
        """The hidden state before each layer and after the last one, (B, T, D) each, and what the body gives."""
        kept: list[Tensor] = []

        def before(_layer: nn.Module, given: Any, named: Any) -> None:
            kept.append(_input_of(given, named))

        def after(_layer: nn.Module, _given: Any, output: Any) -> None:
            kept.append(output if isinstance(output, Tensor) else output[0])

        handles = [self.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
        for index, layer in enumerate(self.layers):
            handles.append(layer.register_forward_hook(after))
            handles.append(layer.register_forward_hook(lambda _l, _g, output, at=index: self._note(at, output)))
        try:
            last_BTD = self.body(ids_BT)
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) != len(self.layers) + 1:
            raise EvaluationError(
                f"of {len(self.layers)} layers {len(kept) - 1} ran, so the model has no loss at every depth. Leave "
                "depths out (--no-depth)."
            )
        return kept, last_BTD

    def _note(self, index: int, output: Any) -> None:
        """What a layer gives back beside its state, so that a stand-in gives back the same kind of thing."""
        self._rests[index] = None if isinstance(output, Tensor) else tuple(output[1:])

    def from_state(self, ids_BT: Tensor, state_BTD: Tensor, begin: int) -> Tensor:
        """The body's last state where layers from ``begin`` on run on a state.

        With ``begin`` L only the final norm runs; on the state before layer ``begin - 1`` that layer is left out.
        """
        with self._handing_through(range(begin), state_BTD):
            last_BTD: Tensor = self.body(ids_BT)
        return last_BTD

    @contextmanager
    def _handing_through(self, layers: range, state_BTD: Tensor) -> Iterator[None]:
        """Let the first layers hand a state through; the very first of them puts it in."""
        for index in layers:

            def forward(*given: Any, at: int = index, **named: Any) -> Any:
                state = state_BTD if at == 0 else _input_of(given, named)
                rest = self._rests[at]
                return state if rest is None else (state, *rest)

            self.layers[index].forward = forward
        try:
            yield
        finally:
            for index in layers:
                del self.layers[index].__dict__["forward"]


def _input_of(given: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """The hidden state that a layer is called with."""
    state = given[0] if given else named["hidden_states"]
    assert isinstance(state, Tensor)
    return state


def measure_depths(
    model: Any,
    documents: Sequence[npt.NDArray[np.integer]],
    *,
    sequence_length: int,
) -> Depths:
    """Losses of all prefixes and of the model without each layer, and how much each block changes its input.

    It costs about 1 + L / 2 forward passes, and L + 1 passes of the head more.

    Args:
        model: a Hugging Face causal language model in float32; it is left as it came.
        documents: token ids, end-of-text first.
        sequence_length: positions of one window.

    Raises:
        EvaluationError: the model cannot be taken apart, a document has no token to predict, or values are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _measure(model, documents, cut_windows(documents, sequence_length))
    finally:
        model.train(was_training)


def _measure(
    model: Any,
    documents: Sequence[npt.NDArray[np.integer]],
    windows: list[Window],
) -> Depths:
    replay = _Replay(model, fill_batch(documents, windows[:1])[0].to(next(model.parameters()).device))
    depth, count = len(replay.layers), len(documents)
    prefixes, without = np.zeros((depth + 1, count, 2)), np.zeros((depth, count, 2))
    cosines, angles = np.zeros(depth), np.zeros((depth + 1, depth + 1))
    tokens_at_once = VALUES_AT_ONCE // ((depth + 1) * model.get_input_embeddings().weight.shape[1])
    position = 0
    while position < len(windows):
        batch = windows[position : position + max(1, tokens_at_once // windows[position][0])]
        try:
            found = _measure_batch(replay, documents, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EvaluationError(
                    f"not enough memory for the states of one window of {batch[0][0]} tokens. Leave depths out "
                    "(--no-depth), or use a machine with more memory."
                ) from error
            tokens_at_once = batch[0][0] * (len(batch) // 2)
            continue
        position += len(batch)
        for total, more in zip((prefixes, without, cosines, angles), found, strict=True):
            total += more
    tokens = prefixes[depth, :, 1].sum()
    mean_angles = np.where(np.triu(np.ones_like(angles), 1) > 0, angles / tokens, np.nan)
    return Depths(prefixes[depth], prefixes, without, 1 - cosines / tokens, mean_angles)


def _measure_batch(
    replay: _Replay, documents: Sequence[npt.NDArray[np.integer]], batch: Sequence[Window]
) -> tuple[npt.NDArray[np.float64], ...]:
    """What some windows add: sums of prefixes (K, documents, 2), without layers (L, documents, 2), cosines, angles."""
    depth, count = len(replay.layers), len(documents)
    ids_BT, targets_BT = (each.to(replay.device) for each in fill_batch(documents, batch))
    scored_BT = targets_BT >= 0
    owners_N = torch.tensor([index for _, index, _ in batch])[:, None].expand(scored_BT.shape)[scored_BT.cpu()].numpy()

    def sums(states_BTD: Tensor) -> npt.NDArray[np.float64]:
        return _sums(replay.head, states_BTD[scored_BT], targets_BT[scored_BT], owners_N, count)

    states, last_BTD = replay.states(ids_BT)
    _require_finite(states)
    _require_whole(replay.from_state(ids_BT, states[-1], depth), last_BTD)
    prefixes = [
        sums(last_BTD if layer == depth else replay.from_state(ids_BT, state_BTD, depth))
        for layer, state_BTD in enumerate(states)
    ]
    without = [sums(replay.from_state(ids_BT, state_BTD, layer + 1)) for layer, state_BTD in enumerate(states[:depth])]
    return np.stack(prefixes), np.stack(without), *_turns([state[scored_BT] for state in states])


def _sums(
    head: nn.Module, states_ND: Tensor, targets_N: Tensor, owners_N: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Nats and tokens of each document, from the body's last states of the scored positions; (documents, 2)."""
    nats_N = nats_by_chunks(head, states_ND, targets_N).double().cpu().numpy()
    return np.stack([np.bincount(owners_N, nats_N, count), np.bincount(owners_N, minlength=count)], axis=1)


def _require_finite(states: list[Tensor]) -> None:
    """Refuse hidden states with NaN or infinity in them.

    Raises:
        EvaluationError: names the first layer that gives one.
    """
    for index, state in enumerate(states):
        if not state.isfinite().all():
            where = "the embeddings give" if index == 0 else f"layer {index - 1} gives"
            raise EvaluationError(
                f"{where} values that are not finite. The model's weights are damaged there: look at them with "
                "`inheritune doctor MODEL`."
            )


def _require_whole(replayed_BTD: Tensor, last_BTD: Tensor) -> None:
    """Make sure that the last layer's state, sent through what follows it, is the model's own end.

    Raises:
        EvaluationError: it is not.
    """
    if float((replayed_BTD - last_BTD).abs().max()) > CLOSE * float(last_BTD.abs().max()):
        raise EvaluationError(
            "the model's last hidden state does not follow from its last layer's alone, so its layers cannot be taken "
            "apart. Leave depths out (--no-depth)."
        )


def _turns(states_ND: list[Tensor]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sums over positions: the cosine across each layer (L,), and the angle between any two states (K, K)."""
    units_KND = torch.stack([nn.functional.normalize(state.double(), dim=-1) for state in states_ND])
    count = len(units_KND)
    cosines, angles = np.zeros(count - 1), np.zeros((count, count))
    for first in range(count - 1):
        cosine_KN = (units_KND[first + 1 :] * units_KND[first]).sum(-1).clamp(-1, 1)
        cosines[first] = float(cosine_KN[0].sum())
        angles[first, first + 1 :] = (cosine_KN.acos() / math.pi).sum(-1).cpu().numpy()
    return cosines, angles
