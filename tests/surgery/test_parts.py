import hashlib
import os

import pytest
import torch
from architectures import nursery
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.errors import RecipeError, SurgeryError
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.parts import KEPT, parts_of
from inheritune.surgery.transplant import inherit

LAYERS = [0, 2]

OWN_WORDS = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "fc1", "fc2"),
    "norms": ("layernorm", "layer_norm", "ln_1", "ln_2", "q_norm", "k_norm"),
}
"""How modules of the eleven families are called; written here anew, so that the test knows better."""


HEADS = ("lm_head.weight", "embed_out.weight")
"""An untied head's name in the files; GPT-NeoX has the second, and its module the first."""


def fresh(child, seed):
    """What transformers' initialiser makes of the child's config, saved and read as the child is."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(child), dtype=torch.float32)
    model.save_pretrained(child.parent / f"fresh-{seed}")
    return load_file(child.parent / f"fresh-{seed}" / "model.safetensors")


def part_of(name):
    """The part of a layer that a tensor of these families belongs to, or None outside the layers."""
    inside = [segment for segment in name.split(".") if segment.isdecimal()]
    if not inside:
        return None
    path = name.split(f".{inside[0]}.", 1)[1].split(".")[:-1]
    if any(word.endswith(OWN_WORDS["norms"]) for word in path):
        return "norms"
    (part,) = [part for part in ("attention", "mlp") if path[0].endswith(OWN_WORDS[part])]
    return part


EACH = ("attention", "attention+norms", "mlp", "mlp+norms", "attention+mlp", "published")
TRIED = EACH if os.environ.get("INHERITUNE_FULL") else ("attention+norms", "published")


@pytest.mark.parametrize("parts", TRIED)
def test_each_tensor_is_the_references_or_the_initialisers_as_the_parts_say(family, parts, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    if family == "mamba" and parts != "published":
        with pytest.raises(SurgeryError, match=r"layer 0 of 'mamba' has no mlp of its own.*mixer.*'published'"):
            inherit(reference, tmp_path / "child", layers=LAYERS, parts=parts)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["reference"]
        return
    certificate = inherit(reference, tmp_path / "child", layers=LAYERS, parts=parts, seed=7)
    source, child = load_file(reference / "model.safetensors"), load_file(tmp_path / "child" / "model.safetensors")
    drawn = fresh(tmp_path / "child", seed=7)
    assert set(certificate.tensors) == set(child)
    for name, origin in certificate.tensors.items():
        if parts == "published":
            is_inherited = any(word.isdecimal() for word in name.split(".")) or name in HEADS
            is_tied = not set(HEADS) & set(child)
            is_inherited |= is_tied and ("embed" in name or "wte" in name) and "position" not in name
        else:
            part = part_of(name)
            is_inherited = part is None or part in KEPT[parts]
        assert origin.op == ("copy" if is_inherited else "init"), name
        assert origin.source == "init" or is_inherited
        expected = source[origin.source] if is_inherited else drawn[name]
        assert torch.equal(child[name], expected), name
        assert origin.sha256 == hashlib.sha256(child[name].numpy().tobytes()).hexdigest()
    assert {origin.op for origin in certificate.tensors.values()} == {"copy", "init"}
    assert certificate.kind == "bytes" and certificate.max_abs_difference is None
    assert any(f"parts={parts}" in note and "seed 7" in note for note in certificate.notes)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "child", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "fresh-7", "reference"]


def test_the_same_seed_gives_the_same_child_and_another_one_another(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    children = [
        inherit(reference, tmp_path / str(place), layers=2, parts="mlp", seed=seed)
        for place, seed in enumerate([0, 0, 1])
    ]
    assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers moved
    same, again, other = ({name: each.sha256 for name, each in child.tensors.items()} for child in children)
    assert same == again
    changed = {name for name in same if same[name] != other[name]}
    assert changed == {name for name in same if "self_attn" in name}  # norms begin at 1 under every seed


def test_all_parts_are_the_whole_layers(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    whole = inherit(reference, tmp_path / "a", layers=2)
    assert inherit(reference, tmp_path / "b", layers=2, parts="all").tensors == whole.tensors


def test_initial_tensors_have_the_dtype_that_the_references_have(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    half = {name: tensor.bfloat16() for name, tensor in load_file(reference / "model.safetensors").items()}
    save_file(half, reference / "model.safetensors", metadata={"format": "pt"})
    inherit(reference, tmp_path / "child", layers=2, parts="attention")
    child = load_file(tmp_path / "child" / "model.safetensors")
    assert {tensor.dtype for tensor in child.values()} == {torch.bfloat16}
    drawn = fresh(tmp_path / "child", seed=0)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(child[name], drawn[name].bfloat16())


def test_old_gpt2_files_without_prefix_are_inherited_as_published(save_reference, tmp_path):
    reference = save_reference("gpt2", tmp_path / "reference")
    file = reference / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    certificate = inherit(reference, tmp_path / "child", layers=2, parts="published")
    begun = {name for name, origin in certificate.tensors.items() if origin.op == "init"}
    assert begun == {"wpe.weight", "ln_f.weight", "ln_f.bias"}


def test_tensors_that_transformers_would_save_under_another_name_are_refused(save_reference, tmp_path):
    reference = save_reference("qwen3_moe", tmp_path / "reference")
    file = reference / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.router.weight"] = tensors.pop("model.layers.0.mlp.gate.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"1 missing .*; 1 unexpected \(first: model\.layers\.0\.mlp\.router"):
        inherit(reference, tmp_path / "child", layers=2, parts="attention")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference"]


def test_modules_that_files_spell_otherwise_are_told_by_what_they_are_in_the_model(save_reference, tmp_path):
    sizes = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "pad_token_id": None}
    reference = save_reference("mixtral", tmp_path / "reference", **sizes, **heads)
    certificate = inherit(reference, tmp_path / "child", layers=1, parts="mlp+norms")
    begun = {name for name, origin in certificate.tensors.items() if origin.op == "init"}
    assert begun == {f"model.layers.0.self_attn.{word}_proj.weight" for word in "qkvo"}
    assert any("block_sparse_moe.experts.1" in name for name in certificate.tensors)


def test_parts_that_do_not_exist_and_quantised_references_are_refused(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    with pytest.raises(RecipeError, match=r"'heads'.*attention\+norms"):
        inherit(reference, tmp_path / "child", layers=2, parts="heads")
    config = (reference / "config.json").read_text()
    (reference / "config.json").write_text(config.replace("{", '{"quantization_config": {"quant_method": "fp8"},', 1))
    with pytest.raises(SurgeryError, match=r"quantised.*dequantise"):
        inherit(reference, tmp_path / "child", layers=2, parts="mlp")


def test_a_child_that_does_not_fit_in_memory_is_refused(save_reference, tmp_path, monkeypatch):
    monkeypatch.setattr("inheritune.surgery.proof._available_bytes", lambda: 1000)
    with pytest.raises(SurgeryError, match="does not fit in the memory"):
        inherit(save_reference("llama", tmp_path / "reference"), tmp_path / "child", layers=2, parts="mlp")


class NormAttentionNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1 = nn.LayerNorm(4)
        self.attn = nn.Linear(4, 4)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)


class GatedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = MLP()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.query_norm = nn.LayerNorm((2, 2))


class Layer(nn.Module):
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ({"self_attn_layer_norm": nn.LayerNorm(4, bias=False)}, {"self_attn_layer_norm.weight": "norms"}),
        ({"any": Attention()}, {"any.query.": "attention", "any.query_norm.": "norms"}),
        ({"wrapped": NormAttentionNorm()}, {"wrapped.norm_1.": "norms", "wrapped.attn.": "attention"}),
        ({"input_layernorm": GatedNorm()}, {"input_layernorm.norm.": None, "input_layernorm.mlp.": None}),
        ({"mixer": MLP()}, {"mixer.": None}),  # the two names contradict each other
        ({"mixer": nn.Linear(4, 4)}, {"mixer.": "attention"}),
        ({"attention_norm": nn.Linear(4, 4)}, {"attention_norm.": None}),  # a matrix is no norm
        ({"attn_dropout": nn.Dropout()}, {}),  # holds nothing
        ({"attn_conv": nn.Linear(4, 4)}, {"attn_conv.": None}),  # something beside the attention
        ({"block_sparse_moe": nn.Linear(4, 4)}, {"block_sparse_moe.": "mlp"}),
        ({"conv": nn.Conv1d(4, 4, 2)}, {"conv.": None}),
        ({"layer_scale": nn.Parameter(torch.ones(4))}, {"layer_scale": None}),
        ({"ln_scale": nn.Parameter(torch.ones(4))}, {"ln_scale": "norms"}),
    ],
)
def test_a_tensor_is_told_by_the_names_and_shapes_of_its_modules_or_not_at_all(modules, told):
    layer = Layer(**modules)
    found = parts_of(layer)
    assert set(found) == set(layer.state_dict())
    for name, part in found.items():
        assert part == next(expected for path, expected in told.items() if name.startswith(path)), name


def test_every_tensor_of_a_layer_belongs_to_a_part(build_model, family):
    for layer in layer_modules(build_model(family)):
        told = parts_of(layer)
        assert set(told) == set(layer.state_dict())
        assert set(told.values()) <= {"attention", "mlp", "norms"}


def test_constant_of_the_last_layer_is_a_part_like_others(tmp_path):
    reference = nursery.save("gpt_neox_japanese", tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers=2, parts="mlp")
    assert certificate.tensors["gpt_neox_japanese.layers.1.attention.dense_bias"].op == "init"


def test_what_a_killed_call_has_left_goes_with_the_next_one(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    (tmp_path / ".child.999999999.init").mkdir()
    inherit(reference, tmp_path / "child", layers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "reference"]
