"""Attention degeneration: rank and column mass of a model's attention matrices, layer by layer, and its lazy layers.

A head whose every query looks at the same few keys has an attention matrix near rank one: it hands through a mean that
does not depend on the query. The paper calls a layer lazy where all its heads are so.

Source: arXiv:2404.08634v4, section 3: the rank is the smallest k whose k largest squared singular values hold 0.90 of
their sum; the mass is the smallest number of columns that hold 0.90 of the squared norm (columns taken by size: the
formula as printed, which takes them in order, says nothing).
"""

# S sequences, H heads, T tokens of a sequence, N matrices.

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.errors import EvaluationError
from inheritune.machine.memory import is_out_of_memory
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.folder import check_files, load_model, quiet
from inheritune.surgery.layer_stream import LayerStream, NotByLayer

ENERGY = 0.90
"""Share of the squared singular values, and of the squared column norms, that rank and mass must hold."""

LAZY_BELOW = 1.5
"""A layer is lazy where the largest rank of its heads, a mean over sequences, is below this. The paper's rule is a
rank of exactly 1; its figures count ranks near 1."""

VALUES_AT_ONCE = 2**27
"""Elements of the widest activation of one pass: 512 MiB in float32."""

OPEN = "eager"
"""Name of the attention that gives its weights back, in the words of transformers."""

ROW_SUM = 1e-3
"""A row of attention sums to 1 within this, or to less where a sink takes the rest."""


def attention_rank(attention_NTT: Tensor, energy: float = ENERGY) -> Tensor:
    """Smallest number of singular values whose squares hold ``energy`` of the sum of all squares; int64 (N,)."""
    wide_NTT = attention_NTT.double()
    with _one_thread():
        squares_NT = torch.linalg.eigvalsh(wide_NTT @ wide_NTT.transpose(-1, -2)).flip(-1).clamp(min=0)
    return _fewest(squares_NT, energy)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of a hundred rows are taken apart ten times as fast by one thread as by two that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def column_mass(attention_NTT: Tensor, energy: float = ENERGY) -> Tensor:
    """Smallest number of columns, the largest first, whose squares hold ``energy`` of all squares; int64 (N,)."""
    squares_NT = attention_NTT.double().square().sum(dim=-2).sort(dim=-1, descending=True).values
    return _fewest(squares_NT, energy)


def _fewest(squares_NT: Tensor, energy: float) -> Tensor:
    """How many of the first values hold the share; rounding does not ask for one more."""
    held_NT = squares_NT.cumsum(-1) / squares_NT.sum(-1, keepdim=True)
    return (held_NT < energy - 1e-12).sum(-1) + 1


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention, means over the sequences."""

    layer: int
    ranks: tuple[float, ...]
    """Of each head; empty where the layer has no softmax attention."""
    masses: tuple[float, ...]
    """Columns of each head."""

    @property
    def max_rank(self) -> float:
        """Of the head with the largest."""
        return max(self.ranks, default=math.nan)

    @property
    def mean_rank(self) -> float:
        """Over heads."""
        return sum(self.ranks) / len(self.ranks) if self.ranks else math.nan

    @property
    def mean_mass(self) -> float:
        """Over heads."""
        return sum(self.masses) / len(self.masses) if self.masses else math.nan

    @property
    def is_lazy(self) -> bool:
        """Whether every head is near rank one (``LAZY_BELOW``)."""
        return bool(self.ranks) and self.max_rank < LAZY_BELOW

    @property
    def is_strictly_lazy(self) -> bool:
        """Whether every head is of rank one in every sequence: the paper's definition as written."""
        return bool(self.ranks) and self.max_rank == 1.0


class _Heads:
    """Sums over sequences of the ranks and masses of each layer's heads, read off what its modules give back."""

    def __init__(self, energy: float) -> None:
        self.energy = energy
        self.sums: dict[int, Tensor] = {}
        self._parts: dict[int, list[Tensor]] = {}
        self._seen: set[int] = set()

    def look(self, layer: int, output: Any, sequences: int, length: int) -> None:
        """Take every attention matrix in a module's output that no module inside of it has given already."""
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.data_ptr() in self._seen:
                continue
            if tensor.shape[0] == sequences and tensor.shape[2:] == (length, length) and _is_attention(tensor, layer):
                self._seen.add(tensor.data_ptr())
                both_SH = [measure(tensor.flatten(0, 1), self.energy) for measure in (attention_rank, column_mass)]
                sums_2H = torch.stack([each.view(sequences, -1).double().sum(0) for each in both_SH])
                self._parts.setdefault(layer, []).append(sums_2H)

    def end_of_layer(self, layer: int) -> None:
        """All of a layer's modules have run on these sequences; its tensors may be let go."""
        self._seen.clear()
        if parts := self._parts.pop(layer, None):
            self.add({layer: torch.cat(parts, dim=1)})

    def add(self, sums: Mapping[int, Tensor]) -> None:
        """Further sums of layers."""
        for layer, found_2H in sums.items():
            self.sums[layer] = self.sums[layer] + found_2H if layer in self.sums else found_2H


def _is_attention(tensor_SHTT: Tensor, layer: int) -> bool:
    """Whether rows are probabilities over the keys so far.

    Raises:
        EvaluationError: there are values that are not finite.
    """
    if not tensor_SHTT.isfinite().all():
        raise EvaluationError(
            f"layer {layer} gives values that are not finite. The model's weights are damaged there: "
            "look at them with `inheritune doctor MODEL`."
        )
    sums_SHT = tensor_SHTT.sum(-1)
    is_causal = not bool(tensor_SHTT.triu(1).any())
    return bool((tensor_SHTT >= 0).all()) and bool((sums_SHT <= 1 + ROW_SUM).all()) and is_causal


@contextmanager
def _watched(model: nn.Module, heads: _Heads, sequences: int, length: int) -> Iterator[None]:
    """Look at what the modules of every layer give back while the model runs."""
    handles = []
    for index, layer in enumerate(layer_modules(model)):

        def look(_module: nn.Module, _inputs: Any, output: Any, index: int = index) -> None:
            heads.look(index, output, sequences, length)

        def end(_module: nn.Module, _inputs: Any, _output: Any, index: int = index) -> None:
            heads.end_of_layer(index)

        handles += [module.register_forward_hook(look) for module in layer.modules() if module is not layer]
        handles += [layer.register_forward_hook(look), layer.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_attention(
    folder: Path,
    ids_ST: Tensor,
    *,
    energy: float = ENERGY,
) -> tuple[LayerAttention, ...]:
    """Rank and mass of every layer's attention on some sequences, in float32, with one layer in memory at a time.

    A model whose files cannot be run layer by layer is loaded whole.

    Args:
        folder: of the model.
        ids_ST: int64 (S, T) token ids.
        energy: share that rank and mass must hold.

    Raises:
        EvaluationError: no layer of the model shows attention weights, or there are values that are not finite.
        SurgeryError: the folder holds no model.
    """
    stream = LayerStream(check_files(folder), attention=OPEN)
    depth = len(stream.layers)

    def by_layer(part_ST: Tensor) -> None:
        stream.run(part_ST, depth, head=False, keep=False)

    try:
        stream.check(all_are_read=False)
        return _measure(stream.model, by_layer, ids_ST, energy)
    except NotByLayer:
        model = load_model(folder)

    def whole(part_ST: Tensor) -> None:
        model(input_ids=part_ST, attention_mask=torch.ones_like(part_ST), use_cache=False)

    return _measure(model, whole, ids_ST, energy)


def _measure(model: Any, run: Callable[[Tensor], None], ids_ST: Tensor, energy: float) -> tuple[LayerAttention, ...]:
    """Run the model on the sequences and look at its layers; a family that must be asked for weights is asked."""
    for ask in (False, True):
        heads = _Heads(energy)
        _show_weights(model, ask=ask)
        waiting = list(ids_ST.split(sequences_at_once(model, ids_ST.shape[1])))
        while waiting:
            part_ST = waiting.pop(0)
            found = _Heads(energy)
            try:
                with _watched(model, found, *part_ST.shape), torch.no_grad():
                    run(part_ST)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part_ST) == 1:
                    raise EvaluationError(
                        f"not enough memory for the attention of one sequence of {part_ST.shape[1]} tokens. Give "
                        "shorter ones (--length), or use a machine with more memory."
                    ) from error
                waiting[:0] = part_ST.split(-(-len(part_ST) // 2))
                continue
            heads.add(found.sums)
        if heads.sums:
            means = {layer: (sums_2H / len(ids_ST)).tolist() for layer, sums_2H in heads.sums.items()}
            no_heads: list[list[float]] = [[], []]
            return tuple(
                LayerAttention(layer, *map(tuple, means.get(layer, no_heads)))
                for layer in range(len(layer_modules(model)))
            )
    raise EvaluationError(
        f"no layer shows attention weights, so there is no rank to measure: a {model.config.model_type} has no softmax "
        "attention, or keeps it to itself. Leave attention out (--no-attention)."
    )


def _show_weights(model: Any, *, ask: bool) -> None:
    """Let the family's own code compute attention in the open; ``ask`` for the weights where it must be asked."""
    with quiet():
        model.set_attn_implementation(OPEN)
    if ask:
        model.config.get_text_config().output_attentions = True


def sequences_at_once(model: Any, length: int) -> int:
    """Sequences of one pass: the widest activation is of ``VALUES_AT_ONCE`` elements at most."""
    widest = max((max(each.shape) for layer in layer_modules(model) for each in layer.parameters()), default=1)
    return max(1, VALUES_AT_ONCE // (length * widest))
