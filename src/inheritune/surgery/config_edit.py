"""The config of a child: the reference's config dict with depth, per-layer lists and derived fields edited. Pure.

Whether the edit is complete is not decided here: ``transplant`` builds both models from their configs and compares what
transformers derives from them, so a field that this module does not know cannot slip through.

Source: measured on 139 model types of transformers 5.23, and the configuration classes themselves.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import DEPTH_FIELDS, Anatomy
from inheritune.surgery.selection import is_prefix

PER_LAYER_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "indexer_types", "layer_rope_theta",
    "intermediate_size", "activation_sparsity_pattern", "attention_layers", "num_attention_heads_per_layer",
    "num_key_value_heads", "moe_topk", "num_experts", "swiglu_limits", "kv_source_layers", "ffn_multipliers",
    "num_query_heads", "num_kv_heads", "attention_window",
})  # fmt: skip
"""Lists with one value for each layer."""

INDEX_LISTS = frozenset({
    "moe_layers", "mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "cross_attention_layers",
    "local_layer_ids", "ple_layer_ids", "hybrid_layer_ids", "moe_layer_indices",
})  # fmt: skip
"""Lists of layer indices; filtered and renumbered."""

PER_LAYER_DICTS = frozenset({"per_layer_config", "pruned_heads"})
"""Dicts from layer index (number or text, zero-padded or not) to settings."""

DEPTH_COPIES = frozenset({"num_blocks"})
"""Second depth fields (xLSTM)."""

PREDICTION_LAYERS: Mapping[str, Any] = {
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
    "mtp_num_hidden_layers": 0,
    "mtp_layer_types": [],
    "mtp_mlp_layer_types": [],
    "mtp_per_layer_config": {},
}
"""Multi-token prediction layers, stored behind the decoder's layers: a child has none."""

PERIOD_FIELDS = (
    *("attn_layer_period", "expert_layer_period", "moe_layer_freq", "decoder_sparse_step"),
    *("interleave_moe_layer_step", "moe_every_n_layers", "cross_attn_every_n_layers"),
)
"""Fields that state a layer's kind by its index; they hold for a prefix, and not for moved layers."""

INDEX_MATHS: Mapping[str, str] = {
    "diffllama": "lambda_init depends on the layer index",
    "minimax": "the decay of linear attention depends on layer index and depth",
}
"""Model types whose layers compute with their own index: a moved layer computes something else."""

SMALL_DEPTH = 3
"""At most this many layers, a list of as many entries may be something else than a per-layer list."""

Edit = Callable[[dict[str, Any], Sequence[int], int], list[str]]


def _minicpm(text: dict[str, Any], layers: Sequence[int], depth: int) -> list[str]:
    text["scale_depth"] *= math.sqrt(len(layers) / depth)
    return [f"scale_depth set to {text['scale_depth']}, so that scale_depth / sqrt(depth) stays what it was"]


def _gpt_neo(text: dict[str, Any], layers: Sequence[int], depth: int) -> list[str]:
    kinds = [kind for pattern, times in text["attention_types"] for _ in range(times) for kind in pattern]
    text["attention_types"] = [[[kinds[index] for index in layers], 1]]
    return []


EXCEPTIONS: Mapping[str, tuple[str, Edit]] = {
    "minicpm3": ("scale_depth", _minicpm),  # residual branches scaled by scale_depth / sqrt(num_hidden_layers)
    "minicpm": ("scale_depth", _minicpm),  # the same formula
    "gpt_neo": ("attention_types", _gpt_neo),  # [[pattern, times], ...] must multiply out to the depth
}
"""Model type -> the field it is about and its edit: configs in which the depth hides in a formula."""


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
        if text.get(name) is None and name in PER_LAYER_LISTS and _is_list_of(value, anatomy.depth):
            text[name] = copy.deepcopy(value)
    return edited, tuple(edit_text_config(text, anatomy, layers))


def edit_text_config(text: dict[str, Any], anatomy: Anatomy, layers: Sequence[int]) -> list[str]:
    """Edit the decoder's config dict in place for the selection; gives the notes.

    Raises:
        SurgeryError: the config cannot state this selection.
    """
    depth = anatomy.depth
    notes: list[str] = []
    if not is_prefix(layers):
        notes += _check_moved(text, layers, depth)
    for name in list(text):
        text[name] = _edit_value(name, text[name], layers, depth, notes)
    for name in {anatomy.depth_field, *DEPTH_FIELDS, *DEPTH_COPIES} & set(text):
        if text[name] == depth:
            text[name] = len(layers)
    text[anatomy.depth_field] = len(layers)
    _edit_derived(text, layers, depth, notes)
    field, edit = EXCEPTIONS.get(str(text.get("model_type")), ("", None))
    if edit is not None and field in text:
        notes += edit(text, layers, depth)
    if text.get("layerdrop"):
        notes.append(
            f"layerdrop is {text['layerdrop']}: training skips layers at random; set it to 0 to train them all"
        )
    return notes


def _is_list_of(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _edit_value(name: str, value: Any, layers: Sequence[int], depth: int, notes: list[str]) -> Any:
    """One field's value in the child; fields that have nothing to do with layers stay as they are."""
    place = {old: new for new, old in enumerate(layers)}
    if name in PREDICTION_LAYERS:
        if value:
            notes.append(f"{name} set to {PREDICTION_LAYERS[name]!r}: a child has no multi-token prediction layers")
            return copy.deepcopy(PREDICTION_LAYERS[name])
        return value
    if name in INDEX_LISTS and isinstance(value, list | tuple):
        return [place[index] for index in value if index in place]
    if name in PER_LAYER_DICTS and isinstance(value, Mapping):
        return {_renumbered(key, place[int(key)]): kept for key, kept in value.items() if int(key) in place}
    if name == "kv_source_layers" and _is_list_of(value, depth):
        return [_moved_source(value[index], place) for index in layers]
    if not _is_list_of(value, depth):
        return value
    if name in PER_LAYER_LISTS:
        return [value[index] for index in layers]
    if depth <= SMALL_DEPTH or name in ("architectures", "eos_token_id"):
        notes.append(
            f"{name} has as many entries as the reference has layers, and is left as it is: not known per layer"
        )
        return value
    notes.append(f"{name} has one entry for each layer of the reference, and was cut like a per-layer list")
    return [value[index] for index in layers]


def _renumbered(key: Any, index: int) -> Any:
    """The new key in the old key's spelling: a number, or text of the same width."""
    return str(index).zfill(len(key)) if isinstance(key, str) else index


def _moved_source(source: Any, place: Mapping[int, int]) -> Any:
    """The layer whose keys and values a kept layer reads, under its new number."""
    if source is None or source in place:
        return None if source is None else place[source]
    raise SurgeryError(
        f"a kept layer reads keys and values of layer {source}, which the selection drops (kv_source_layers). "
        f"Keep layer {source} too."
    )


def _edit_derived(text: dict[str, Any], layers: Sequence[int], depth: int, notes: list[str]) -> None:
    """Fields that follow from which layers are kept."""
    shared = text.get("num_kv_shared_layers")
    if shared:
        text["num_kv_shared_layers"] = sum(index >= depth - shared for index in layers)
        notes.append(f"num_kv_shared_layers is {text['num_kv_shared_layers']} in the child, {shared} in the reference")
    dense = text.get("first_k_dense_replace")
    if type(dense) is int and dense > 0:
        text["first_k_dense_replace"] = sum(index < dense for index in layers)
        if text["first_k_dense_replace"] == len(layers):
            notes.append("every kept layer is dense: the child has no experts")


def _check_moved(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> list[str]:
    """Refuse what cannot be stated of layers that change their index; gives notes on what changes its meaning."""
    periods = [name for name in PERIOD_FIELDS if type(text.get(name)) is int and text[name] > 1]
    if periods and not (_is_list_of(text.get("layer_types"), depth) and text.get("mlp_layer_types")):
        raise SurgeryError(
            f"the config states the kind of a layer by its index ({periods[0]} = {text[periods[0]]}), which cannot "
            f"describe the selection {list(layers)}. Choose a prefix: a number of layers."
        )
    if text.get("num_kv_shared_layers"):
        raise SurgeryError(
            f"the last {text['num_kv_shared_layers']} layers read keys and values of earlier ones by position, which "
            f"does not hold for the selection {list(layers)}. Choose a prefix: a number of layers."
        )
    notes = []
    model_type = str(text.get("model_type"))
    if model_type in INDEX_MATHS:
        notes.append(f"moved layers do not compute what they did: in {model_type} {INDEX_MATHS[model_type]}")
    if text.get("scale_attn_by_inverse_layer_idx"):
        notes.append("moved layers do not compute what they did: attention is scaled by the layer index")
    return notes
