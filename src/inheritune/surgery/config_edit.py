"""The config of a child: the reference's config dict with depth, per-layer lists and derived fields edited. Pure.

Whether the edit is complete is not decided here: ``cut`` builds both models from their configs and compares what
transformers derives from them, so a field that this module does not know cannot slip through. Fields that follow
another rule than these stand in ``exceptions``.

Source: measured on 184 model types of transformers 5.23 (docs/architectures.md), and the configuration classes
themselves.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from inheritune.surgery.anatomy import DEPTH_FIELDS, Anatomy
from inheritune.surgery.exceptions import CONFIG_EXCEPTIONS

PER_LAYER_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "indexer_types", "layer_rope_theta",
    "intermediate_size", "activation_sparsity_pattern", "attention_layers", "num_attention_heads_per_layer",
    "num_key_value_heads", "moe_topk", "num_experts", "swiglu_limits", "ffn_multipliers", "num_query_heads",
    "num_kv_heads", "attention_window", "attn_layers",
})  # fmt: skip
"""Lists with one value for each layer."""

INDEX_LISTS = frozenset({
    "moe_layers", "mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "cross_attention_layers",
    "local_layer_ids", "hybrid_layer_ids", "moe_layer_indices",
})  # fmt: skip
"""Lists of layer indices; filtered and renumbered."""

ONE_BASED_LISTS = frozenset({"ple_layer_ids"})
"""The same, counted from 1."""

PER_LAYER_DICTS = frozenset({"per_layer_config", "pruned_heads"})
"""Dicts from layer index (number or text, zero-padded or not) to settings."""

SMALL_DEPTH = 3
"""At most this many layers, a list of as many entries may be something else than a per-layer list."""

NEVER_PER_LAYER = ("architectures", "eos_token_id")


def edit_config(
    config: Mapping[str, Any], full: Mapping[str, Any], anatomy: Anatomy, layers: Sequence[int]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The child's config dict.

    Args:
        config: the reference's config.json.
        full: the same with every field that transformers derives (``to_dict`` of the loaded config); its per-layer
            lists are written out in the child, so that no pattern is derived anew.
        anatomy: where the depth is stated.
        layers: kept layers, increasing.

    Returns:
        The new dict, and notes in words on every edit that a reader should know of.

    Raises:
        SurgeryError: the config cannot state this selection.
    """
    edited = copy.deepcopy(dict(config))
    text, full_text = anatomy.text_config(edited), anatomy.text_config(full)
    for name, value in full_text.items():
        if text.get(name) is None and _is_of_layers(name, value, anatomy.depth):
            text[name] = copy.deepcopy(value)
    return edited, tuple(edit_text_config(text, anatomy, layers))


def edit_text_config(text: dict[str, Any], anatomy: Anatomy, layers: Sequence[int]) -> list[str]:
    """Edit the decoder's config dict in place for the selection; gives the notes.

    Raises:
        SurgeryError: the config cannot state this selection.
    """
    depth = anatomy.depth
    notes: list[str] = []
    changed: dict[str, Any] = {}
    for exception in CONFIG_EXCEPTIONS:
        fields, words = exception.edit(text, layers, depth)
        changed |= fields
        notes += words
    for name in list(text):
        text[name] = changed[name] if name in changed else _edit_value(name, text[name], layers, depth, notes)
    text |= changed
    for name in {anatomy.depth_field, *DEPTH_FIELDS} & set(text):
        if text[name] == depth:
            text[name] = len(layers)
    text[anatomy.depth_field] = len(layers)
    if text.get("layerdrop"):
        notes.append(
            f"layerdrop is {text['layerdrop']}: training skips layers at random; set it to 0 to train them all"
        )
    return notes


def _is_of_layers(name: str, value: Any, depth: int) -> bool:
    """Whether a field says something of each layer, or of some by their index."""
    return bool(value) and (
        (name in PER_LAYER_LISTS and _is_list_of(value, depth))
        or (name in INDEX_LISTS | ONE_BASED_LISTS and isinstance(value, list | tuple))
        or (name in PER_LAYER_DICTS and isinstance(value, Mapping))
    )


def _is_list_of(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _edit_value(name: str, value: Any, layers: Sequence[int], depth: int, notes: list[str]) -> Any:
    """One field's value in the child; fields that have nothing to do with layers stay as they are."""
    place = {old: new for new, old in enumerate(layers)}
    if name in INDEX_LISTS and isinstance(value, list | tuple):
        return [place[index] for index in value if index in place]
    if name in ONE_BASED_LISTS and isinstance(value, list | tuple):
        return [place[index - 1] + 1 for index in value if index - 1 in place]
    if name in PER_LAYER_DICTS and isinstance(value, Mapping):
        return {_renumbered(key, place[int(key)]): kept for key, kept in value.items() if int(key) in place}
    if not _is_list_of(value, depth) or name in NEVER_PER_LAYER:
        return value
    if name in PER_LAYER_LISTS:
        return [value[index] for index in layers]
    if depth <= SMALL_DEPTH:
        notes.append(
            f"{name} has as many entries as the reference has layers, and is left as it is: not known per layer"
        )
        return value
    notes.append(f"{name} has one entry for each layer of the reference, and was cut like a per-layer list")
    return [value[index] for index in layers]


def _renumbered(key: Any, index: int) -> Any:
    """The new key in the old key's spelling: a number, or text of the same width."""
    return str(index).zfill(len(key)) if isinstance(key, str) else index
