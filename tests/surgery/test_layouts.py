"""Files as they are published, and not as transformers saves them today, are cut as exactly.

Each layout is written from the parameters of a tiny random model by its own function. That it is a layout which
transformers reads is shown first: the parent loads from it with the very parameters it was written from.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.transplant import inherit

Tensors = dict[str, Tensor]

DEPTH = 4
POSITIONS = 128

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

SIZES = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": DEPTH, "max_position_embeddings": POSITIONS}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TOKENS = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
MOE = {**SIZES, **HEADS, **TOKENS, "intermediate_size": 32, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = {**MOE, **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}


def renamed(tensors: Tensors, *changes: tuple[str, str]) -> Tensors:
    for old, new in changes:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def without_front(front: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.removeprefix(front): tensor for name, tensor in tensors.items()}


def with_buffers(stem: str, **buffers: Tensor) -> Callable[[Tensors], Tensors]:
    """Adds what old versions saved in every layer and no version reads: ``stem`` holds ``{}`` for the layer."""
    return lambda tensors: (
        tensors
        | {
            f"{stem.format(layer)}.{name.replace('__', '.')}": buffer.clone()
            for layer in range(DEPTH)
            for name, buffer in buffers.items()
        }
    )


MASK = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.uint8).tril()
NEVER = torch.tensor(-1e9)
FREQUENCIES = 1.0 / 10_000 ** (torch.arange(0, 8, 2) / 8)


def gpt2_of_2019(tensors: Tensors) -> Tensors:
    """openai-community/gpt2 and distilgpt2: no ``transformer.``, masks as buffers."""
    bare = without_front("transformer.")(tensors)
    return with_buffers("h.{}.attn", bias=MASK.float(), masked_bias=torch.tensor(-1e4))(bare)


def experts_one_by_one(
    experts: str = "mlp.experts", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> Callable[[Tensors], Tensors]:
    """``experts.gate_up_proj`` (E, 2 x width, D) and ``experts.down_proj`` (E, D, width) as a matrix an expert."""

    def split(tensors: Tensors) -> Tensors:
        published: Tensors = {}
        for name, tensor in tensors.items():
            stem, _, last = name.rpartition(".")
            if not stem.endswith(experts) or last not in ("gate_up_proj", "down_proj"):
                published[name] = tensor
                continue
            for number, matrix in enumerate(tensor):
                parts = (
                    dict(zip((gate, up), matrix.chunk(2), strict=True)) if last == "gate_up_proj" else {down: matrix}
                )
                published |= {f"{stem}.{number}.{part}.weight": value.clone() for part, value in parts.items()}
        return published

    return split


def mixtral(tensors: Tensors) -> Tensors:
    """mistralai/Mixtral-8x7B: ``block_sparse_moe`` and w1, w3, w2."""
    return renamed(experts_one_by_one(gate="w1", up="w3", down="w2")(tensors), (".mlp.", ".block_sparse_moe."))


def with_prediction_layer(tensors: Tensors) -> Tensors:
    """DeepSeek-V3 and GLM-4.5: a whole layer more at index depth, with projections and a head of its own."""
    split = experts_one_by_one()(tensors)
    last, behind = f"model.layers.{DEPTH - 1}.", f"model.layers.{DEPTH}."
    layer = {name.replace(last, behind): torch.randn_like(tensor) for name, tensor in split.items() if last in name}
    table, norm = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"]
    own = {
        "embed_tokens.weight": table,
        "enorm.weight": norm,
        "hnorm.weight": norm,
        "eh_proj.weight": torch.randn(len(norm), 2 * len(norm)),
        "shared_head.norm.weight": norm,
        "shared_head.head.weight": table,
    }
    return split | layer | {behind + name: tensor.clone() for name, tensor in own.items()}


def tied_head_written(table: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {"lm_head.weight": tensors[table].clone()}


Layout = tuple[str, dict[str, Any], Callable[[Tensors], Tensors]]

LAYOUTS: dict[str, Layout] = {
    "gpt2 of 2019": ("gpt2", {}, gpt2_of_2019),
    "gpt_neox of 2022": (
        "gpt_neox",
        {},
        with_buffers(
            "gpt_neox.layers.{}.attention", bias=MASK.bool(), masked_bias=NEVER, rotary_emb__inv_freq=FREQUENCIES
        ),
    ),
    "gpt_neo of 2021": (
        "gpt_neo",
        {**SIZES, **TOKENS, "num_layers": DEPTH, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
        with_buffers("transformer.h.{}.attn.attention", bias=MASK, masked_bias=NEVER),
    ),
    "gptj of 2021": (
        "gptj",
        {**TOKENS, "vocab_size": 260, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
        with_buffers("transformer.h.{}.attn", bias=MASK, masked_bias=NEVER),
    ),
    "codegen of 2022": (
        "codegen",
        {**TOKENS, "vocab_size": 260, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
        with_buffers("transformer.h.{}.attn", causal_mask=MASK.bool()),
    ),
    "openai-gpt of 2018": (
        "openai-gpt",
        {"vocab_size": 260, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 128},
        lambda tensors: with_buffers("h.{}.attn", bias=MASK.float())(without_front("transformer.")(tensors)),
    ),
    "llama of 2023": ("llama", {}, with_buffers("model.layers.{}.self_attn", rotary_emb__inv_freq=FREQUENCIES)),
    "bloom of 2022": (
        "bloom",
        {"vocab_size": 260, "hidden_size": 32, "n_layer": DEPTH, "n_head": 4},
        without_front("transformer."),
    ),
    "opt of 2022": (
        "opt",
        {},
        lambda tensors: tied_head_written("decoder.embed_tokens.weight")(without_front("model.")(tensors)),
    ),
    "xglm of 2021": (
        "xglm",
        {"vocab_size": 260, "d_model": 32, "num_layers": DEPTH, "attention_heads": 4, "ffn_dim": 32},
        lambda tensors: tensors | {"model.embed_positions.weights": torch.randn(130, 32)},
    ),
    "qwen3_moe": ("qwen3_moe", {}, experts_one_by_one()),
    "qwen3_moe fused": ("qwen3_moe", {}, lambda tensors: tensors),
    "mixtral": ("mixtral", {**MOE, "num_local_experts": 4}, mixtral),
    "deepseek_v2": ("deepseek_v2", {**DEEPSEEK, "first_k_dense_replace": 1}, experts_one_by_one()),
    "deepseek_v3 with a prediction layer": ("deepseek_v3", {**DEEPSEEK, **GROUPS}, with_prediction_layer),
    "glm4_moe with a prediction layer": (
        "glm4_moe",
        {**MOE, **GROUPS, "n_routed_experts": 4, "n_shared_experts": 1},
        with_prediction_layer,
    ),
    "llama with a tied head": ("llama", {"tie_word_embeddings": True}, lambda tensors: tensors),
    "llama with a tied head twice": (
        "llama",
        {"tie_word_embeddings": True},
        tied_head_written("model.embed_tokens.weight"),
    ),
    "gemma2 with a tied head twice": ("gemma2", {}, tied_head_written("model.embed_tokens.weight")),
}


def publish(model: Any, folder: Any, layout: Callable[[Tensors], Tensors]) -> None:
    """Replace the saved weights by the same ones in another layout."""
    aliases = set(getattr(model, "all_tied_weights_keys", {}))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}
    save_file(
        {name: tensor.contiguous() for name, tensor in layout(tensors).items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def reload(folder: Any, **settings: Any) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, **settings}, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model.eval()


def hidden_after(model: Any, layer: int) -> Tensor:
    kept: list[Tensor] = []
    hook = layer_modules(model)[layer].register_forward_hook(
        lambda _module, _inputs, output: kept.append(output if isinstance(output, Tensor) else output[0])
    )
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        model(ids, use_cache=False)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_child_of_a_published_layout_is_its_reference_up_to_the_last_kept_layer(
    layout, build_model, save_reference, tmp_path
):
    family, settings, write = LAYOUTS[layout]
    reference = save_reference(family, tmp_path / "reference", **settings)
    model = build_model(family, **settings)
    publish(model, reference, write)
    parent = reload(reference)
    assert all(torch.equal(tensor, parent.state_dict()[name]) for name, tensor in model.state_dict().items())
    for kept in (1, 2, DEPTH):
        certificate = inherit(reference, tmp_path / "child", layers=kept)
        assert (certificate.kind, certificate.max_abs_difference) == ("prefix", 0.0)
        assert torch.equal(hidden_after(reload(tmp_path / "child"), kept - 1), hidden_after(parent, kept - 1))
        published, child = load_file(reference / WEIGHTS), load_file(tmp_path / "child" / WEIGHTS)
        assert all(torch.equal(child[name], published[origin.source]) for name, origin in certificate.tensors.items())
