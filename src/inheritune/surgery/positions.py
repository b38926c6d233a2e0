"""How long a sequence a model can read: to the end of its table of positions, or as far as one likes.

Whether there is a table is read off the model's own modules, built on device meta: no table of architectures.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from inheritune.errors import RecipeError
from inheritune.surgery.anatomy import OTHER_TOWERS
from inheritune.surgery.folder import build_on_meta

TABLE_WORDS = ("pos", "wpe")
"""Parts of a table's own name where the config does not state its length."""


def check_positions(model_or_config: Any, sequence_length: int) -> str | None:
    """Whether rows of this length can be read by the model.

    Args:
        model_or_config: a model of transformers, or its config.
        sequence_length: tokens of a row.

    Returns:
        None where the model was made for this length or states none; a warning where its positions are computed
        (rotary and the like) and it states fewer.

    Raises:
        RecipeError: its positions come from a table (learned, or stored sines) that ends before; names the table.
        SurgeryError: a model of this config cannot be built.
    """
    is_model = isinstance(model_or_config, PreTrainedModel)
    model: PreTrainedModel = model_or_config if is_model else build_on_meta(model_or_config)
    config: Any = model.config
    stated = _stated(config)
    for path, positions in _tables(model, stated):
        if sequence_length > positions:
            raise RecipeError(
                f"a sequence length of {sequence_length} is asked for, and {config.model_type!r} reads its positions "
                f"from a table of {positions} ({path}). "
                f"Set data.sequence_length (--sequence-length of train) to {positions} or less."
            )
    if stated is not None and sequence_length > stated:
        return (
            f"a sequence length of {sequence_length} is asked for, and {config.model_type!r} was made for {stated} "
            "positions. They are computed, so longer rows run; how good the model is there is unknown. "
            f"Set data.sequence_length (--sequence-length of train) to {stated} to stay within."
        )
    return None


def _stated(config: Any) -> int | None:
    """Positions that the (text) config states."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions if type(positions) is int and positions > 0 else None


def _tables(model: PreTrainedModel, stated: int | None) -> Iterator[tuple[str, int]]:
    """Module path and usable positions of each table of positions in the decoder."""
    vocabulary = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for path, module in model.named_modules():
        if any(word in path for word in OTHER_TOWERS):
            continue
        name = path.rpartition(".")[2]
        is_table = isinstance(module, nn.Embedding) and id(module) not in vocabulary
        if is_table:
            positions = _usable_rows(module)
            if positions == stated or any(word in name for word in TABLE_WORDS):
                yield path, positions
        for key, buffer in module.named_buffers(recurse=False):
            if not is_table and buffer.dim() == 2 and len(buffer) == stated and TABLE_WORDS[0] in key:
                yield f"{path}.{key}", len(buffer)


def _usable_rows(table: nn.Module) -> int:
    """Rows that positions can reach: those in front are left out where the class counts from an offset or a padding."""
    assert isinstance(table.weight, torch.Tensor)
    padding: Any = getattr(table, "padding_idx", None)
    offset: Any = getattr(table, "offset", None)
    if type(offset) is int:
        return len(table.weight) - offset
    return len(table.weight) - (0 if padding is None else padding + 1)
