"""Files as they are published, and not as transformers saves them today, are cut as exactly.

Each layout is written from the parameters of a tiny random model by its own function. That it is a layout which
transformers reads is shown first: the parent loads from it with the very parameters it was written from.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import nursery
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.recheck import recheck
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


def with_vision_tower(tensors: Tensors) -> Tensors:
    """Qwen3.5 and Gemma 3n: the text model as a part of one that sees."""
    inner = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    return inner | {"model.visual.blocks.0.attn.qkv.weight": torch.randn(8, 8), "mtp.fc.weight": torch.randn(8, 8)}


def of_2022(tensors: Tensors) -> Tensors:
    """facebook/opt-125m: no ``model.``, and the tied head written out."""
    return tied_head_written("decoder.embed_tokens.weight")(without_front("model.")(tensors))


def of_2018(tensors: Tensors) -> Tensors:
    """openai-community/openai-gpt: no ``transformer.``, masks as buffers."""
    return with_buffers("h.{}.attn", bias=MASK.float())(without_front("transformer.")(tensors))


def as_it_is(tensors: Tensors) -> Tensors:
    """The parameters under the names that the module has: experts side by side in one tensor."""
    return tensors


def tied_head_written(table: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {"lm_head.weight": tensors[table].clone()}


Layout = tuple[str, dict[str, Any], Callable[[Tensors], Tensors]]

EXPERTS = {**MOE, "num_experts": 4}
LOCAL_EXPERTS = {**MOE, "num_local_experts": 4}
ROUTED = {**MOE, "n_routed_experts": 4, "n_shared_experts": 1}
PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
OLD = {**TOKENS, "vocab_size": 260, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": POSITIONS}

LAYOUTS: dict[str, Layout] = {
    "gpt2": ("gpt2", {}, gpt2_of_2019),
    "openai-gpt": ("openai-gpt", OLD, of_2018),
    "gpt_neo": (
        "gpt_neo",
        {**SIZES, **TOKENS, "num_layers": DEPTH, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
        with_buffers("transformer.h.{}.attn.attention", bias=MASK, masked_bias=NEVER),
    ),
    "gptj": ("gptj", {**OLD, "rotary_dim": 8}, with_buffers("transformer.h.{}.attn", bias=MASK, masked_bias=NEVER)),
    "codegen": ("codegen", {**OLD, "rotary_dim": 8}, with_buffers("transformer.h.{}.attn", causal_mask=MASK.bool())),
    "xglm": (
        "xglm",
        {"vocab_size": 260, "d_model": 32, "num_layers": DEPTH, "attention_heads": 4, "ffn_dim": 32},
        lambda tensors: tensors | {"model.embed_positions.weights": torch.randn(130, 32)},
    ),
    "gpt_neox": (
        "gpt_neox",
        {},
        with_buffers(
            "gpt_neox.layers.{}.attention", bias=MASK.bool(), masked_bias=NEVER, rotary_emb__inv_freq=FREQUENCIES
        ),
    ),
    "opt": ("opt", {}, of_2022),
    "bloom": ("bloom", {**SIZES, "n_layer": DEPTH, "n_head": 4}, without_front("transformer.")),
    "llama": ("llama", {}, with_buffers("model.layers.{}.self_attn", rotary_emb__inv_freq=FREQUENCIES)),
    "llama, tied head": ("llama", {"tie_word_embeddings": True}, as_it_is),
    "llama, tied head twice": (
        "llama",
        {"tie_word_embeddings": True},
        tied_head_written("model.embed_tokens.weight"),
    ),
    "gemma2, tied head twice": ("gemma2", {}, tied_head_written("model.embed_tokens.weight")),
    "qwen3_moe": ("qwen3_moe", {}, experts_one_by_one()),
    "qwen3_moe, fused": ("qwen3_moe", {}, as_it_is),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 16}, experts_one_by_one()),
    "olmoe": ("olmoe", EXPERTS, experts_one_by_one()),
    "mixtral": ("mixtral", LOCAL_EXPERTS, mixtral),
    "mixtral, fused": ("mixtral", LOCAL_EXPERTS, as_it_is),
    "phimoe": ("phimoe", LOCAL_EXPERTS, lambda tensors: renamed(mixtral(tensors), ("moe.router.", "moe.gate."))),
    "minimax_m2": ("minimax_m2", {**LOCAL_EXPERTS, "rotary_dim": 8}, mixtral),
    "jamba": (
        "jamba",
        {**EXPERTS, **PERIODS, "mamba_dt_rank": 4, "mamba_d_state": 8, "use_mamba_kernels": False},
        experts_one_by_one("feed_forward.experts"),
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
        experts_one_by_one("feed_forward.experts", "w1", "w3", "w2"),
    ),
    "granitemoe": (
        "granitemoe",
        LOCAL_EXPERTS,
        lambda tensors: renamed(
            tensors,
            ("moe.experts.gate_up_proj", "moe.input_linear.weight"),
            ("moe.experts.down_proj", "moe.output_linear.weight"),
            ("moe.router.weight", "moe.router.layer.weight"),
        ),
    ),
    "deepseek_v2": ("deepseek_v2", {**DEEPSEEK, "first_k_dense_replace": 1}, experts_one_by_one()),
    "deepseek_v3, prediction layer": ("deepseek_v3", {**DEEPSEEK, **GROUPS}, with_prediction_layer),
    "glm4_moe, prediction layer": ("glm4_moe", {**ROUTED, **GROUPS}, with_prediction_layer),
    "qwen3_5_text, in a model that sees": (
        "qwen3_5_text",
        {
            **{name: value for name, value in MOE.items() if "moe" not in name and "experts" not in name},
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        with_vision_tower,
    ),
}
"""Name -> family, config, and what writes the layout."""


def write(tensors: Tensors, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def parameters(model: Any) -> Tensors:
    """Under the module's names, each once."""
    aliases = set(getattr(model, "all_tied_weights_keys", {}))
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in aliases}


def reload(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
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
    layout, build_model, save_reference, tmp_path, full
):
    family, settings, publish = LAYOUTS[layout]
    model, reference = build_model(family, **settings), save_reference(family, tmp_path / "reference", **settings)
    write(publish(parameters(model)), reference / WEIGHTS)
    parent = reload(reference)
    assert all(torch.equal(tensor, parent.state_dict()[name]) for name, tensor in model.state_dict().items())
    published = load_file(reference / WEIGHTS)
    for kept in (1, 2, DEPTH) if full else (2,):
        certificate = inherit(reference, tmp_path / "child", layers=kept)
        assert (certificate.kind, certificate.max_abs_difference) == ("prefix", 0.0)
        assert torch.equal(hidden_after(reload(tmp_path / "child"), kept - 1), hidden_after(parent, kept - 1))
        child = load_file(tmp_path / "child" / WEIGHTS)
        assert all(torch.equal(child[name], published[origin.source]) for name, origin in certificate.tensors.items())


def test_tied_head_is_in_the_child_as_often_as_in_the_reference(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference", tie_word_embeddings=True)
    once = load_file(reference / WEIGHTS)
    for tensors in (once, tied_head_written("model.embed_tokens.weight")(once)):
        write(tensors, reference / WEIGHTS)
        certificate = inherit(reference, tmp_path / "child", layers=2)
        assert ("lm_head.weight" in certificate.tensors) == ("lm_head.weight" in tensors)


def test_prediction_layer_behind_the_depth_is_neither_kept_nor_counted(build_model, save_reference, tmp_path):
    settings = {**DEEPSEEK, **GROUPS}
    reference = save_reference("deepseek_v3", tmp_path / "reference", **settings)
    write(with_prediction_layer(parameters(build_model("deepseek_v3", **settings))), reference / WEIGHTS)
    certificate = inherit(reference, tmp_path / "child", layers=DEPTH)
    assert not any(origin.source.startswith(f"model.layers.{DEPTH}.") for origin in certificate.tensors.values())
    assert any("multi-token prediction layers are dropped" in note for note in certificate.notes)
    assert json.loads((tmp_path / "child" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert inherit(tmp_path / "child", tmp_path / "grandchild", layers=1).max_abs_difference == 0.0


def write_shards(tensors: Tensors, folder: Path, num_shards: int) -> None:
    """Every name in turn to another shard, so that each layer lies in all of them, and an index."""
    shards: list[Tensors] = [{} for _ in range(num_shards)]
    for number, name in enumerate(sorted(tensors)):
        shards[number % num_shards][name] = tensors[name]
    place = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{num_shards:05}.safetensors"
        write(shard, folder / file)
        place |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": place}
    (folder / INDEX).write_text(json.dumps(index))


def test_layer_that_is_split_over_shards_is_kept_whole(save_reference, tmp_path):
    reference = save_reference("qwen3", tmp_path / "reference")
    expected = inherit(reference, tmp_path / "child", layers=3)
    write_shards(load_file(reference / WEIGHTS), reference, 3)
    (reference / WEIGHTS).unlink()
    certificate = inherit(reference, tmp_path / "sharded", layers=3)
    assert certificate.tensors == expected.tensors and certificate.max_abs_difference == 0.0
    assert torch.equal(hidden_after(reload(tmp_path / "sharded"), 2), hidden_after(reload(reference), 2))


def test_one_whole_file_wins_over_an_index_beside_it_as_transformers_has_it(save_reference, tmp_path):
    reference = save_reference("qwen3", tmp_path / "reference")
    whole = load_file(reference / WEIGHTS)
    write_shards({name: tensor + 1 for name, tensor in whole.items()}, reference, 2)
    inherit(reference, tmp_path / "child", layers=2)
    assert torch.equal(hidden_after(reload(tmp_path / "child"), 1), hidden_after(reload(reference), 1))
    child = load_file(tmp_path / "child" / WEIGHTS)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in child.items())
    assert not list((tmp_path / "child").glob("model-*"))


def test_weights_in_another_format_beside_the_model_are_left_alone(save_reference, tmp_path):
    reference = save_reference("qwen3", tmp_path / "reference")
    write({"layers.0.attention.wq.weight": torch.ones(2)}, reference / "consolidated.safetensors")  # as Mistral's
    write({"model.norm.weight": torch.ones(2)}, reference / "adapter.safetensors")
    certificate = inherit(reference, tmp_path / "child", layers=2)
    assert certificate.max_abs_difference == 0.0
    assert [path.name for path in (tmp_path / "child").glob("*.safetensors")] == [WEIGHTS]


@pytest.mark.parametrize("norms", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("matrices", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_keeps_its_own_dtype(matrices, norms, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    tensors = {
        name: tensor.to(matrices if tensor.dim() > 1 else norms)
        for name, tensor in load_file(reference / WEIGHTS).items()
    }
    write(tensors, reference / WEIGHTS)
    certificate = inherit(reference, tmp_path / "child", layers=2)
    child = load_file(tmp_path / "child" / WEIGHTS)
    assert {name: tensor.dtype for name, tensor in child.items()} == {name: tensors[name].dtype for name in child}
    assert certificate.max_abs_difference == 0.0
    assert torch.equal(hidden_after(reload(tmp_path / "child"), 1), hidden_after(reload(reference), 1))


BLOCK = 16

QUANTISED: dict[str, tuple[str, dict[str, Any]]] = {
    "weight_scale_inv": (
        "qwen3_moe",  # as Qwen3-FP8 and DeepSeek-V3: a scale for each square of the matrix
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
    ),
    "weight_scale": (
        "llama",  # as compressed-tensors: a scale for each row, and one for what comes in
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
        },
    ),
}


def quantised(tensors: Tensors, scale: str) -> Tensors:
    """Every matrix of a layer in FP8 with its scales, everything else in bfloat16."""
    published: Tensors = {}
    for name, tensor in tensors.items():
        if ".layers." not in name or not name.endswith("proj.weight"):
            published[name] = tensor.to(torch.bfloat16)
            continue
        blocks = (-(-tensor.shape[0] // BLOCK), -(-tensor.shape[1] // BLOCK))
        published[name.removesuffix("weight") + scale] = (
            torch.rand(*(blocks if scale.endswith("inv") else (len(tensor), 1))) + 0.5
        )
        if scale == "weight_scale":
            published[name.removesuffix("weight") + "input_scale"] = torch.rand(())
        published[name] = (tensor / spread(published, name, scale, tensor.shape)).to(torch.float8_e4m3fn)
    return published


def spread(tensors: Tensors, name: str, scale: str, shape: Any) -> Tensor:
    """The scale of every element."""
    scales = tensors[name.removesuffix("weight") + scale]
    if scale.endswith("inv"):
        scales = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]
    return scales


def dequantised(folder: Path, scale: str) -> None:
    """Write the weights of a folder as float32, each times its scale, so that any machine runs them."""
    tensors = load_file(folder / WEIGHTS)
    plain = {
        name: tensor.float()
        * (spread(tensors, name, scale, tensor.shape) if tensor.dtype == torch.float8_e4m3fn else 1)
        for name, tensor in tensors.items()
        if not name.endswith("_scale") and not name.endswith("_inv")
    }
    write(plain, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("scale", sorted(QUANTISED))
def test_quantised_reference_is_cut_byte_for_byte_with_every_scale(scale, save_reference, tmp_path):
    family, settings = QUANTISED[scale]
    reference = save_reference(family, tmp_path / "reference")
    published = quantised(load_file(reference / WEIGHTS), scale)
    write(published, reference / WEIGHTS)
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    certificate = inherit(reference, tmp_path / "child", layers=2)
    assert (certificate.kind, certificate.max_abs_difference) == ("bytes", None)
    assert any("quantised" in note for note in certificate.notes)
    child = load_file(tmp_path / "child" / WEIGHTS)
    expected = {name for name in published if not any(f".layers.{index}." in name for index in (2, 3))}
    assert set(child) == expected and any(name.endswith(scale) for name in child)
    for name, tensor in child.items():
        assert tensor.dtype == published[name].dtype
        assert torch.equal(tensor.flatten().view(torch.uint8), published[name].flatten().view(torch.uint8))
    assert json.loads((tmp_path / "child" / "config.json").read_text())["quantization_config"] == settings
    for folder in (reference, tmp_path / "child"):
        dequantised(folder, scale)
    assert torch.equal(hidden_after(reload(tmp_path / "child"), 1), hidden_after(reload(reference), 1))


def test_text_config_inside_a_wrapper_states_the_new_dtype_too(tmp_path):
    parent = nursery.save("qwen3_5", tmp_path / "parent")
    for dtype in ("bfloat16", "float32"):
        inherit(parent, tmp_path / "child", layers=5, dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "child", dtype="auto")
        assert str(model.dtype) == f"torch.{dtype}"
        recheck(tmp_path / "child", parent)


def test_prediction_layers_beside_a_wrapper_s_layers_are_no_second_list(tmp_path):
    parent = nursery.save("qwen3_5", tmp_path / "parent")
    tensors = load_file(parent / WEIGHTS)
    write({**tensors, "mtp.layers.0.input_layernorm.weight": torch.ones(4)}, parent / WEIGHTS)
    certificate = inherit(parent, tmp_path / "child", layers=5)
    assert certificate.max_abs_difference == 0.0 and not any("mtp" in name for name in certificate.tensors)
