"""Prefix equality: the child's hidden state after each layer is the reference's, bit for bit (law 2)."""

# B batch, T positions, D hidden size, V vocabulary.

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.folder import Weights, load_model
from inheritune.surgery.layer_stream import LayerStream, NotByLayer
from inheritune.surgery.tensor_file import TensorEntry

BATCH, POSITIONS, SEED = 2, 16, 0
"""The random tokens that both models see."""


class NotProved(Exception):  # noqa: N818 (a fact that goes into the certificate, not an error of the user)
    """The models cannot be run here; the reason in words."""


@dataclass(frozen=True)
class States:
    """What a model made of the random tokens.

    Attributes:
        hidden_BTD: by index, after each of the first layers that runs on text alone, float32.
        logits_BTV: where every layer was asked for; else None.
    """

    hidden_BTD: Mapping[int, Tensor]  # noqa: N815
    logits_BTV: Tensor | None  # noqa: N815


def states_of(weights: Weights, num_layers: int, *, to_the_end: bool, is_child: bool) -> States:
    """Run the seeded random tokens through the first layers of a model on disk, one layer in memory at a time.

    A model that cannot be run so is loaded whole, if it fits.

    Args:
        weights: the model's checked files.
        num_layers: so many first layers.
        to_the_end: run what comes behind them, too (every layer, then).
        is_child: refuse files that hold a tensor which the model does not read.

    Raises:
        NotProved: it does not fit in the memory that is free.
        SurgeryError: its files are not those of its config, or the model fails in its own forward.
    """
    stream = LayerStream(weights)
    try:
        stream.check(all_are_read=is_child)
        if not fits_in_memory(stream.in_memory(num_layers, head=to_the_end)):
            raise NotProved("one layer in float32 beside the embeddings does not fit in the memory that is free")
        hidden, logits = stream.run(random_tokens(stream.model), num_layers, head=to_the_end)
        return States(dict(enumerate(hidden)), logits)
    except NotByLayer as error:
        reason = str(error)
    if not fits_in_memory(list(weights.tensors.values())):
        raise NotProved(
            f"the model in float32 does not fit in the memory that is free, and cannot be run layer by layer ({reason})"
        )
    states, logits = _run_whole(load_model(weights.folder, all_are_read=is_child), num_layers)
    if not states:
        raise NotProved("none of the kept layers runs on text alone")
    return States(states, logits if to_the_end else None)


def first_difference(expected: States, found: States) -> tuple[float, str]:
    """The largest difference, and where the first one is, in words; 0 and nothing if there is none.

    A layer that runs in one of the two alone is an infinite difference.
    """
    one_ran, other_ran = expected.hidden_BTD, found.hidden_BTD
    if one_ran.keys() != other_ran.keys():
        return float("inf"), f"in layer {min(one_ran.keys() ^ other_ran.keys())}, which runs in one of the two alone"
    pairs = [(f"after layer {index}", one_ran[index], other_ran[index]) for index in sorted(one_ran)]
    if expected.logits_BTV is not None and found.logits_BTV is not None:
        pairs.append(("in the logits", expected.logits_BTV, found.logits_BTV))
    differences = [(largest_difference(one, other), where) for where, one, other in pairs]
    where = next((where for difference, where in differences if difference), "")
    return max(difference for difference, _ in differences), where


class Trace(NamedTuple):
    """What a model made of the random tokens: the hidden state after one layer, and the logits. float32."""

    hidden_BTD: Tensor  # noqa: N815
    logits_BTV: Tensor  # noqa: N815


def trace(model: PreTrainedModel, layer: int) -> Trace:
    """Run the seeded random tokens through the model and keep what comes out of one layer.

    Raises:
        SurgeryError: the model fails in its own forward.
    """
    hidden, logits_BTV = _run_whole(model, layer + 1)
    return Trace(hidden[max(hidden)], logits_BTV)


def random_tokens(model: PreTrainedModel) -> Tensor:
    """The seeded random tokens that every model of this vocabulary is shown: int64 (B, T)."""
    config: Any = model.config
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    positions = min(POSITIONS, stated) if type(stated) is int and stated > 0 else POSITIONS  # XLNet states -1: no end
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(embedding.num_embeddings, (BATCH, positions), generator=generator)


def _run_whole(model: PreTrainedModel, num_layers: int) -> tuple[dict[int, Tensor], Tensor]:
    """The hidden state after each of the first layers that run, and the logits, of a model that is in memory."""
    ids_BT = random_tokens(model)
    states: dict[int, Tensor] = {}

    def keeper(index: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[index] = (output if isinstance(output, Tensor) else output[0]).detach().clone()

        return keep

    layers = layer_modules(model)[:num_layers]
    handles = [layer.register_forward_hook(keeper(index)) for index, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        config: Any = model.config
        raise SurgeryError(
            f"a {config.model_type!r} cannot be run in float32 on the CPU, so the cut cannot be proved: {error}. "
            "Mend the model, or inherit without the proof (--no-verify; from Python: verify=False)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return states, logits_BTV


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """Largest absolute difference; infinite for other shapes and for values that are not finite in one of the two."""
    if expected.shape != found.shape:
        return float("inf")
    if torch.equal(expected, found):
        return 0.0
    difference = (expected - found).abs().max().item()
    return difference if difference == difference else float("inf")


def fits_in_memory(entries: Sequence[TensorEntry]) -> bool:
    """Whether these tensors as float32, and a fifth more for the run, fit in the memory that is free now."""
    return memory_needed(entries) < _available_bytes()


def memory_needed(entries: Sequence[TensorEntry]) -> int:
    """Bytes of these tensors as float32, and a fifth more for the run."""
    return sum(4 * math.prod(entry.shape) for entry in entries) * 6 // 5


def _available_bytes() -> int:
    """Memory that can be had: what Linux says is available, elsewhere half of what the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
