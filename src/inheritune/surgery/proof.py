"""Prefix equality: the child's last hidden state is the reference's after the same layer, bit for bit (law 2)."""

# B batch, T positions, D hidden size, V vocabulary.

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.tensor_file import TensorEntry

BATCH, POSITIONS, SEED = 2, 32, 0
"""The random tokens that both models see."""


class Trace(NamedTuple):
    """What a model made of the random tokens: the hidden state after one layer, and the logits. float32."""

    hidden_BTD: Tensor  # noqa: N815
    logits_BTV: Tensor  # noqa: N815


def trace(model: PreTrainedModel, layer: int) -> Trace:
    """Run the seeded random tokens through the model and keep what comes out of one layer.

    Raises:
        SurgeryError: the model fails in its own forward.
    """
    config: Any = model.config
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    positions = min(POSITIONS, getattr(config.get_text_config(), "max_position_embeddings", None) or POSITIONS)
    generator = torch.Generator().manual_seed(SEED)
    ids_BT = torch.randint(embedding.num_embeddings, (BATCH, positions), generator=generator)
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    handle = layer_modules(model)[layer].register_forward_hook(keep)
    try:
        with torch.no_grad():
            logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SurgeryError(
            f"a {config.model_type!r} cannot be run in float32 on the CPU, so the cut cannot be proved: {error}. "
            "Mend the model, or inherit without the proof (--no-verify; from Python: verify=False)."
        ) from error
    finally:
        handle.remove()
    return Trace(outputs[-1], logits_BTV)


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
