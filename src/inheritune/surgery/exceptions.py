"""The true exceptions: what the rules of the cut cannot see by themselves, each with its reason, source and test.

The rules need no table of architectures: the layers are the list of modules as long as the depth (``anatomy``), config
lists of that length and lists of layer indices follow the kept layers (``config_edit``), every tensor outside the list
is kept (``tensor_names``), and both models, built without memory, must agree in every field, shape and setting
(``cut``, ``layer_maths``). What stands here is the rest. A source is a file or class of transformers 5.23 below
``transformers/models``, unless it says otherwise.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.surgery.selection import is_prefix

Changes = tuple[dict[str, Any], list[str]]
"""New values of some fields, and notes in words."""

Edit = Callable[[Mapping[str, Any], Sequence[int], int], Changes]
"""(the reference's text config, kept layers, depth of the reference) -> what the child's has otherwise. Pure."""


@dataclass(frozen=True)
class ConfigException:
    """Fields in which the depth, or a layer's place, hides.

    Attributes:
        reason: what they mean, and what follows for a child.
        source: where transformers says so.
        edit: gives the changed fields; none where the model has no such field.
    """

    reason: str
    source: str
    edit: Edit


@dataclass(frozen=True)
class Obstacle:
    """Why a model type cannot be cut, or not everywhere: the reason is added to the refusal.

    Attributes:
        reason: in words, the end of "it cannot be cut ...: REASON".
        source: where transformers says so.
    """

    reason: str
    source: str


# --- configs ---------------------------------------------------------------------------------------------------------

PREDICTION_LAYERS: Mapping[str, Any] = {
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
    "mtp_num_hidden_layers": 0,
    "mtp_layer_types": [],
    "mtp_mlp_layer_types": [],
    "mtp_per_layer_config": {},
}
"""Fields of multi-token prediction layers and what they are where there are none."""

SECOND_DEPTHS = ("num_blocks",)

LEADING_COUNTS = ("first_k_dense_replace", "num_dense_layers")
"""How many of the first layers are dense in a model of experts."""

PATTERNS_IN_LETTERS = ("hybrid_override_pattern",)


def _prediction_layers(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    changed = {name: copy.deepcopy(none) for name, none in PREDICTION_LAYERS.items() if text.get(name)}
    notes = [f"{name} set to {none!r}: a child has no multi-token prediction layers" for name, none in changed.items()]
    return changed, notes


def _residual_scale(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    if text.get("model_type") not in ("minicpm", "minicpm3") or not text.get("scale_depth"):
        return {}, []
    scale = text["scale_depth"] * math.sqrt(len(layers) / depth)
    return {"scale_depth": scale}, [f"scale_depth set to {scale}, so that scale_depth / sqrt(depth) stays what it was"]


def _multiplied_pattern(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    if not text.get("attention_types"):
        return {}, []
    kinds = [kind for pattern, times in text["attention_types"] for _ in range(times) for kind in pattern]
    return {"attention_types": [[[kinds[index] for index in layers], 1]]}, []


def _pattern_in_letters(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    letters = {name: text[name] for name in PATTERNS_IN_LETTERS if len(text.get(name) or "") == depth}
    return {name: "".join(word[index] for index in layers) for name, word in letters.items()}, []


def _second_depth(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    return {name: len(layers) for name in SECOND_DEPTHS if text.get(name) == depth}, []


def _shared_keys(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    shared = text.get("num_kv_shared_layers")
    if not shared:
        return {}, []
    if not is_prefix(layers):
        raise SurgeryError(
            f"the last {shared} layers read keys and values of earlier ones by position, which does not hold for the "
            f"selection {list(layers)}. Choose a prefix: a number of layers."
        )
    kept = sum(index >= depth - shared for index in layers)
    return {"num_kv_shared_layers": kept}, [f"num_kv_shared_layers is {kept} in the child, {shared} in the reference"]


def _key_sources(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    sources = text.get("kv_source_layers")
    if not isinstance(sources, list | tuple) or len(sources) != depth:
        return {}, []
    place = {old: new for new, old in enumerate(layers)}
    for source in (sources[index] for index in layers):
        if source is not None and source not in place:
            raise SurgeryError(
                f"a kept layer reads keys and values of layer {source}, which the selection drops (kv_source_layers). "
                f"Keep layer {source} too."
            )
    return {"kv_source_layers": [None if sources[old] is None else place[sources[old]] for old in layers]}, []


def _leading_dense(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    dense = {name: text[name] for name in LEADING_COUNTS if type(text.get(name)) is int and text[name] > 0}
    changed = {name: sum(index < count for index in layers) for name, count in dense.items()}
    all_dense = len(layers) in changed.values()
    return changed, ["every kept layer is dense: the child has no experts"] if all_dense else []


def _sparse_step(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    step = text.get("decoder_sparse_step")
    if is_prefix(layers) or type(step) is not int or step < 2:
        return {}, []
    listed = text.get("mlp_only_layers") or ()
    dense = [new for new, old in enumerate(layers) if old in listed or (old + 1) % step]
    note = f"decoder_sparse_step = {step} is written out: mlp_only_layers lists the child's dense layers"
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}, [note]


def _rescaled_by_index(text: Mapping[str, Any], layers: Sequence[int], depth: int) -> Changes:
    every = text.get("rescale_every")
    if is_prefix(layers) or not every:
        return {}, []
    return {}, [
        f"moved layers do not compute what they did: for inference the layers are halved after every {every}, by index"
    ]


CONFIG_EXCEPTIONS: tuple[ConfigException, ...] = (
    ConfigException(
        "multi-token prediction layers are trained on top of the last layer; a child has another last layer, so none",
        "DeepSeek-V3 and GLM-4.5 store them at layers.DEPTH and behind, Qwen3-Next and others as mtp.*; every class "
        "ignores them (_keys_to_ignore_on_load_unexpected)",
        _prediction_layers,
    ),
    ConfigException(
        "residual branches are scaled by scale_depth / sqrt(depth), which must stay what it was",
        "minicpm3/modeling_minicpm3.py, MiniCPM3DecoderLayer.residual_scale",
        _residual_scale,
    ),
    ConfigException(
        "attention_types is [[pattern, times], ...] and must multiply out to the depth: one written-out pattern, once",
        "gpt_neo/configuration_gpt_neo.py, GPTNeoConfig.expand_attention_types_params",
        _multiplied_pattern,
    ),
    ConfigException(
        "published configs state the kind of each layer as one letter; the list that is made of it takes precedence, "
        "and the letters must not contradict it",
        "nemotron_h/configuration_nemotron_h.py, NemotronHConfig.__post_init__ (hybrid_override_pattern)",
        _pattern_in_letters,
    ),
    ConfigException(
        "num_blocks is the depth a second time",
        "xlstm/configuration_xlstm.py, xLSTMConfig.num_blocks",
        _second_depth,
    ),
    ConfigException(
        "the last num_kv_shared_layers layers read keys and values of earlier ones: counted from the end, so that a "
        "prefix has fewer of them or none",
        "gemma3n/modeling_gemma3n.py, is_kv_shared_layer; gemma4/modeling_gemma4.py",
        _shared_keys,
    ),
    ConfigException(
        "kv_source_layers names for each layer the one whose keys and values it reads: renumbered, or refused",
        "mistral_large4/configuration_mistral_large4.py, kv_source_layers",
        _key_sources,
    ),
    ConfigException(
        "the first layers of a model of experts are dense: as many as are kept",
        "deepseek_v3/modeling_deepseek_v3.py, DeepseekV3DecoderLayer; afmoe/modeling_afmoe.py, AfmoeDecoderLayer",
        _leading_dense,
    ),
    ConfigException(
        "every decoder_sparse_step-th layer has experts; for moved layers the dense ones are listed instead",
        "qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeDecoderLayer; qwen2_moe, qwen3_next, flint",
        _sparse_step,
    ),
    ConfigException(
        "for inference output weights and hidden states are divided by 2 every rescale_every layers, by their index",
        "rwkv/modeling_rwkv.py, RwkvModel._rescale_layers",
        _rescaled_by_index,
    ),
)
"""Each about fields of its own."""


# --- tensors ---------------------------------------------------------------------------------------------------------

PREDICTION_TENSOR = re.compile(r"^(?:model\.)?mtp(?:_\w+)?\.")
"""Multi-token prediction layers that are stored beside the layer list (Qwen3-Next, MiMo, Qwen3.5); those behind it are
recognised by their index."""

PACKED_OVER_DEPTH = {"embed_tokens_per_layer": 1, "per_layer_model_projection": 0}
"""Matrices that hold one block for each layer side by side, along this axis; a prefix keeps the leading blocks.

Source: gemma3n/modeling_gemma3n.py and gemma4/modeling_gemma4.py, project_per_layer_inputs.
"""

ZERO_IN_LAST_LAYER = re.compile(r"(?:^|\.)attention\.dense_bias$")
"""GPT-NeoX Japanese has this bias in its last layer alone; the child's last layer gets one of zeros, which changes
nothing.

Source: gpt_neox_japanese/modeling_gpt_neox_japanese.py, GPTNeoXJapaneseLayer (use_bias).
"""

HYBRID_ADAPTER = re.compile(r"adapter_list\.(\d+)\.")
"""Zamba2 stores the adapters of every hybrid layer inside the shared block: one entry for each hybrid layer.

Source: zamba2/modeling_zamba2.py, Zamba2MLP and Zamba2Attention (num_fwd_mem_blocks).
"""


BESIDE_LAYERS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"\.attn_res\.attn_queries\.(\d+)$"), 1),
    (re.compile(r"\.attn_res\.mlp_queries\.(\d+)$"), 0),
)
"""Inkling 2 stores the residual queries of its layers in lists of their own; the first list begins with layer 1.

Source: conversion_mapping.py of transformers, inkling2_text (Inkling2IndexOffsetWeightRename).
"""


def layer_beside(name: str) -> int | None:
    """The layer of a tensor that files store in a list of its own beside the layers; None for every other one."""
    for pattern, first in BESIDE_LAYERS:
        if match := pattern.search(name):
            return int(match[1]) + first
    return None


def packed_over_depth(name: str, shape: Sequence[int], depth: int, num_kept: int) -> tuple[int, ...] | None:
    """The child's shape of a matrix that holds one block for each layer side by side; None for every other tensor."""
    axis = next((axis for word, axis in PACKED_OVER_DEPTH.items() if f".{word}." in f".{name}"), None)
    if axis is None or len(shape) != 2 or shape[axis] % depth:
        return None
    kept = shape[axis] // depth * num_kept
    return (kept, shape[1]) if axis == 0 else (shape[0], kept)


def is_zero_in_child(model_type: str, name: str) -> bool:
    """Whether a tensor that the reference's layer lacks is one of zeros in the child's."""
    return model_type == "gpt_neox_japanese" and ZERO_IN_LAST_LAYER.search(name) is not None


def is_of_dropped_hybrid(name: str, text: Mapping[str, Any]) -> bool:
    """Whether a tensor is the adapter of a hybrid layer that the child does not have.

    Args:
        name: of the tensor.
        text: the child's text config, every field of it.
    """
    match = HYBRID_ADAPTER.search(name)
    kinds = text.get("layers_block_type")
    return bool(match and kinds and int(match[1]) >= list(kinds).count("hybrid"))


# --- what cannot be cut, or not everywhere ---------------------------------------------------------------------------

OBSTACLES: Mapping[str, Obstacle] = {
    "hrm_text": Obstacle(
        "two stacks of layers take turns in a loop, so there is no hidden state after a layer",
        "hrm_text/modeling_hrm_text.py, HrmTextModel (H_cycles, L_cycles)",
    ),
    "blt": Obstacle(
        "three stacks (local encoder, global transformer, local decoder) and a patcher share the work",
        "blt/modeling_blt.py, BltModel",
    ),
    "xlm": Obstacle(
        "attention, norms and feed-forward parts of all layers are kept in four parallel lists",
        "xlm/modeling_xlm.py, XLMModel (attentions, layer_norm1, ffns, layer_norm2)",
    ),
    **{
        name: Obstacle(
            "its config forces the last layer to be one of full attention, so a child must end with such a layer",
            "gemma4/configuration_gemma4.py, __post_init__ (layer_types[-1])",
        )
        for name in ("gemma4_text", "gemma4_unified_text")
    },
    "rwkv": Obstacle(
        "its initialiser divides by the depth less one",
        "rwkv/modeling_rwkv.py, RwkvPreTrainedModel._init_weights",
    ),
    "zamba": Obstacle(
        "its rule that ties the shared block to the first hybrid layer's fails where only one hybrid layer is left",
        "zamba/modeling_zamba.py, ZambaModel._tied_weights_keys",
    ),
    "olmo_hybrid": Obstacle(
        "its config wants at least one attention layer",
        "olmo_hybrid/configuration_olmo_hybrid.py, OlmoHybridConfig.validate_architecture",
    ),
}
"""Model type of the text config -> why it is refused, at all or at some depths. Whether it is refused is not decided
here: the rules find out, and this says why."""

LEAST_DEPTHS: Mapping[str, int] = {"rwkv": 2}
"""The least depth at which a class works, where only running it would show that; the reason is an obstacle."""

HARMLESS_SETTINGS: Mapping[str, str] = {
    "GPTNeoXJapaneseAttention.use_bias": "the last layer's bias of zeros (ZERO_IN_LAST_LAYER)",
    "MiniMaxLightningAttention.num_hidden_layers": "the decay that is made of it is a buffer, which the files hold",
    "Zamba2Attention.num_fwd_mem_blocks": "how many hybrid layers there are, each with its adapter (HYBRID_ADAPTER)",
    "Zamba2MLP.num_fwd_mem_blocks": "how many hybrid layers there are, each with its adapter (HYBRID_ADAPTER)",
    "Gemma3nTextAttention.store_full_length_kv": "only whether keys are kept for later layers that read them",
    "Gemma4TextAttention.store_full_length_kv": "only whether keys are kept for later layers that read them",
    "Gemma4UnifiedTextAttention.store_full_length_kv": "only whether keys are kept for later layers that read them",
}
"""Settings of a layer (class.attribute) that may differ, since what the layer computes does not depend on them."""

PERIOD_FIELDS = (
    *("attn_layer_period", "expert_layer_period", "moe_layer_freq", "decoder_sparse_step", "moe_layer_interval"),
    *("interleave_moe_layer_step", "moe_every_n_layers", "cross_attn_every_n_layers", "global_attn_every_n_layers"),
    *("n_layers_per_attn_res_block", "layer_group_size", "moe_layer_start_index", "moe_layer_end_index"),
)
"""Fields that state a layer's kind by its index: named when a selection that moves layers is refused for it."""

INDEX_NAMES = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx"})
"""Attributes in which a layer keeps its own index (for its place in the cache); they may differ in a child."""
