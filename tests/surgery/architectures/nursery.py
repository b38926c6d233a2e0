"""A tiny random model of every causal-LM type that the installed transformers maps, built on the spot, offline.

``TYPES`` names those that can be built here, ``NOT_BUILDABLE`` the others with the reason, ``WITHOUT_STACK`` types of
``TYPES`` whose depth cannot be chosen freely. ``build(model_type, depth)`` gives the model, ``save(model_type, folder,
depth)`` a folder of it. From a test: ``from architectures.nursery import TYPES, build, save`` (pytest finds the package
through ``pythonpath`` in pyproject.toml).

A type's own default config is shrunk by the names of its fields (``SIZES``); a few types need values of their own
(``OVERRIDES``). A type that is new in transformers is therefore built without a change here, or the test of all types
says why it is not.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

DEPTH = 12
"""Layers of a parent, unless its type needs more."""

MAX_PARAMETERS = 20_000_000
"""A larger one was not shrunk as it should be."""

STD = 0.05
"""Standard deviation of the matrices, so that every layer matters and nothing overflows."""

VOCABULARY = 260

_BY_SIZE: Mapping[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size shape_vocab_size "
    "pronunciation_vocab_size audio_vocab_size encoder_hash_byte_group_vocab",
    64: "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim hidden_size_global emb_dim dim_model "
    "embedding_dim input_embedding_size output_embedding_size lru_width attention_hidden_size dim_model_base "
    "out_hidden_size vision_output_dim backbone_hidden_size router_hidden_size "
    "intermediate_size moe_intermediate_size ffn_dim ffn_hidden_size shared_expert_intermediate_size "
    "shared_intermediate_size intermediate_size_mlp moe_shared_expert_intermediate_size n_inner dff d_ff dim_ff "
    "shared_experts_intermediate_size decoder_ffn_dim encoder_ffn_dim d_inner feed_forward_size mlp_dim "
    "expert_ffn_hidden_size dense_intermediate_size moe_ffn_hidden_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads index_n_heads "
    "conf_num_attention_heads n_mamba_heads linear_num_heads linear_num_value_heads "
    "num_experts n_routed_experts num_local_experts moe_num_experts",
    2: "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_query_groups linear_num_key_heads "
    "num_experts_per_tok num_experts_per_token moe_k moe_top_k moe_topk zero_expert_num",
    16: "head_dim dim_head kv_channels d_kv attention_head_size swa_head_dim attention_head_dim index_head_dim d_head "
    "linear_head_dim linear_key_head_dim linear_value_head_dim v_head_dim qk_nope_head_dim global_head_dim "
    "mamba_d_head mamba_head_dim mamba_headdim q_lora_rank kv_lora_rank o_lora_rank mamba_d_state state_size "
    "ssm_state_size adapter_rank mamba_dt_rank time_step_rank hidden_size_per_layer_input ple_embed_dim laurel_rank "
    "rel_extent gated_norm_rank hc_lowrank",
    8: "qk_rope_head_dim rotary_dim sliding_window sliding_window_size window_size local_attention "
    "attention_window_size attention_chunk_size mamba_n_heads mamba_num_heads",
    24: "qk_head_dim",
    128: "max_position_embeddings n_positions n_ctx context_length max_seq_len max_target_positions "
    "model_max_length original_max_position_embeddings mamba_d_ssm",
    1: "n_group num_expert_group topk_group mamba_n_groups mamba_ngroups n_groups n_shared_experts",
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
"""Field -> its value in a tiny model; the hidden size is 64, in 4 heads of 16."""

FILLED = ("num_key_value_heads", "head_dim", "n_routed_experts", "num_experts_per_tok", "n_shared_experts")
"""Fields that some types leave open and yet need."""

DEPTHS = ("num_hidden_layers", "decoder_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")

TOWER_DEPTH = 2
"""Layers of an encoder and of a vision or audio tower."""

LATENT_ATTENTION = {"head_dim": 8, "num_key_value_heads": 4}
"""Fields of attention with a latent key: the rotary part's size, and a key head for each query head."""

NOT_BUILDABLE: Mapping[str, str] = {
    "gemma3n": "its towers need the package timm",
    "musicgen": "a composite of three models: AutoModelForCausalLM has no class for its whole config",
    "musicgen_melody": "a composite of three models: AutoModelForCausalLM has no class for its whole config",
    "gemma4_assistant": "drafts for another model, whose hidden states it must be given",
    "gemma4_unified_assistant": "drafts for another model, whose hidden states it must be given",
}
"""Types of which no parent runs here, with the reason; at most 50."""


def _kinds(depth: int, *pattern: str) -> list[str]:
    """The pattern of layer kinds repeated to the depth."""
    return [pattern[index % len(pattern)] for index in range(depth)]


def overrides(model_type: str, depth: int) -> dict[str, Any]:
    """Config values that a type needs beyond the sizes."""
    narrow = {
        "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 32, "q_lora_rank": 16, "head_dim": 24,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    values: dict[str, dict[str, Any]] = {
        "bamba": {"attn_layer_indices": [index for index in range(depth) if index % 3 == 1]},
        "blt": {"encoder_hash_byte_group_vocab": 100},
        "cohere_compass_text": {
            "rope_parameters": {"full_attention": {**rope, "mrope_section": [2, 3, 3]}},
            "layer_types": ["full_attention"] * depth,
        },
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "dots1": {"first_k_dense_replace": 1},
        "dots3_note_text": {
            "per_layer_config": {index: narrow for index in range(2, depth) if index % 4 != 1},
            "num_key_value_heads": 4, "head_dim": 24,
        },
        "falcon_h1": {"mamba_d_ssm": 128},
        "gemma3n_text": {
            "intermediate_size": [64] * depth,
            "activation_sparsity_pattern": [0.5] * (depth // 3) + [0.0] * (depth - depth // 3),
            "num_kv_shared_layers": depth // 3,
        },
        "gpt_neo": {"attention_types": [[["global", "local"], depth // 2], [["global"], depth % 2]]},
        "lfm2_moe": {"layer_types": _kinds(depth, "conv", "conv", "full_attention")},
        "mamba2": {"num_heads": 8},
        "nemotron_h": {"layers_block_type": _kinds(depth, "linear_attention", "moe", "full_attention", "mlp")},
        "qwen4_exp_text": {
            "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
            "indexer_compress_ratio": 4,
        },
        "reformer": {
            "is_decoder": True, "attn_layers": _kinds(depth, "local", "lsh"), "axial_pos_shape": [8, 16],
            "axial_pos_embds_dim": [16, 48], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
            "num_buckets": 4, "hash_seed": 0,
        },
        "roc_bert": {"max_position_embeddings": 128},
        "xmod": {"default_language": "en_XX"},
        "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
        "zamba2": {
            "layers_block_type": _kinds(depth, "linear_attention", "linear_attention", "hybrid"),
            "num_key_value_heads": 4, "mamba_headdim": 32, "attention_head_dim": 32, "attention_hidden_size": 128,
        },
        "zaya": {"num_experts_per_tok": 1},
    }  # fmt: skip
    found = values.get(model_type, {})
    if model_type == "emu3":
        found = {"vocabulary_map": {"<image>": VOCABULARY - 1}}
    if model_type == "dots3_note":
        vision = {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 64, "adapter_out_dim": 64}
        found = {"vision_config": vision, "audio_config": {"adapter_out_dim": 64, "adapter_input_size": 64}}
    return {**found, "text_config": values[f"{model_type}_text"]} if f"{model_type}_text" in values else found


def tiny_config(model_type: str, depth: int = DEPTH, **changes: Any) -> Any:
    """The config of a tiny model: the type's default one, shrunk; ``changes`` are set last."""
    with silence():
        default = CONFIG_MAPPING[model_type]().to_dict()
        values = _shrunk(default, depth)
        for name, value in {**overrides(model_type, depth), **changes}.items():
            values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
        return CONFIG_MAPPING[model_type](**values)


def _shrunk(default: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The fields of a default config that a tiny model has otherwise."""
    values: dict[str, Any] = {}
    for name, value in default.items():
        if isinstance(value, Mapping) and "model_type" in value:
            if value["model_type"]:
                inner = depth if name in ("text_config", "decoder") else TOWER_DEPTH
                values[name] = {**_shrunk(value, inner), "model_type": value["model_type"]}
        elif name in DEPTHS and type(value) is int:
            values[name] = depth
        elif name in ("encoder_layers", "num_encoder_layers", "depth") and type(value) is int:
            values[name] = TOWER_DEPTH
        elif name in SIZES and ((type(value) is int and value > 0) or (value is None and name in FILLED)):
            values[name] = SIZES[name]
        elif name.endswith(("token_id", "token_index")) and value is not None:
            values[name] = VOCABULARY - 1 if type(value) is not int or value >= VOCABULARY else value
    if default.get("qk_rope_head_dim"):
        values |= {name: value for name, value in LATENT_ATTENTION.items() if name in values}
    return values


def build(model_type: str, depth: int = DEPTH, **changes: Any) -> PreTrainedModel:
    """A seeded random model in eval mode, float32, on the CPU, in which every layer matters.

    Args:
        model_type: one of ``TYPES``.
        depth: decoder layers.
        changes: config fields that are to be otherwise (sub-configs as dicts of what is otherwise in them).

    Raises:
        MemoryError: its config was not shrunk enough.
    """
    config = tiny_config(model_type, depth, **changes)
    with silence():
        with torch.device("meta"):
            num_parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        if num_parameters > MAX_PARAMETERS:
            raise MemoryError(f"a {model_type!r} of this config has {num_parameters} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some classes make constants at random
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomised(model)
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    return model.eval()


def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Seeded values for every parameter, in place: matrices of ``STD``, vectors near what they were."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=STD)
            else:
                parameter.add_(STD * torch.randn_like(parameter))
    return model


def save(model_type: str, folder: Path, depth: int = DEPTH, **changes: Any) -> Path:
    """``build`` and save; gives the folder.

    Where the causal LM of a type is only the text part of a wrapper for images or sound, the wrapper is saved, as it
    is published.
    """
    with silence():
        model = build(model_type, depth, **changes)
        if model.config.model_type != CONFIG_MAPPING[model_type].model_type:
            config = tiny_config(model_type, depth, **changes)
            model = _randomised(AutoModelForMultimodalLM.from_config(config, dtype=torch.float32))
        model.save_pretrained(folder)
    return folder


class silence(warnings.catch_warnings):  # noqa: N801
    """No warning and no log line of transformers (unset token ids, deprecated fields of defaults)."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self.verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        logging.set_verbosity(self.verbosity)
        super().__exit__(*error)


TYPES = tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_BUILDABLE)))
"""The types that can be built."""

TYPES_OF_LONG_FORM = TYPES if os.environ.get("INHERITUNE_FULL") else ()
"""For tests of every type that run in the long form alone."""
