"""A trained child keeps what it has learned, bit for bit; added layers are the reference's, or exact no-ops."""

import pytest
import torch
from safetensors.torch import load_file

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import find_layers
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.deepen import deepen, make_identity
from inheritune.surgery.folder import load_model
from inheritune.surgery.proof import trace
from inheritune.surgery.transplant import inherit

pytestmark = pytest.mark.reliability("R23")

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def grown_from(save_reference, tmp_path):
    """A reference of four layers, and a child of its first two that has moved away from it."""

    def build(family):
        reference = save_reference(family, tmp_path / "reference")
        inherit(reference, tmp_path / "child", layers=2)
        child = load_model(tmp_path / "child")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in child.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        child.save_pretrained(tmp_path / "child")
        return reference, tmp_path / "child"

    return build


def logits(folder):
    with torch.no_grad():
        return load_model(folder)(input_ids=IDS, use_cache=False).logits


def test_a_deeper_child_keeps_what_was_trained_and_takes_the_next_layers_of_the_reference(family, grown_from, tmp_path):
    reference, child = grown_from(family)
    certificate = deepen(child, reference, tmp_path / "deep", layers=4)
    deep, shallow, whole = load_model(tmp_path / "deep"), load_model(child), load_model(reference)
    path, kept = find_layers(deep).path, dict(shallow.named_parameters())
    sources = dict(whole.named_parameters())
    for name, parameter in deep.named_parameters():
        layer = name.removeprefix(f"{path}.").partition(".")[0]
        from_reference = name.startswith(path) and int(layer) >= 2
        assert torch.equal(parameter, sources[name] if from_reference else kept[name]), name
    assert torch.equal(trace(deep, 1).hidden_BTD, trace(shallow, 1).hidden_BTD)
    assert (certificate.kind, certificate.layers, certificate.max_abs_difference) == ("grown", (0, 1, 2, 3), 0.0)
    assert Certificate.load(tmp_path / "deep") == certificate


def test_every_tensor_of_a_grown_child_has_a_source(family, grown_from, tmp_path):
    reference, child = grown_from(family)
    certificate = deepen(child, reference, tmp_path / "deep", layers=3, added="identity")
    saved = load_file(tmp_path / "deep" / "model.safetensors")
    assert certificate.tensors.keys() == saved.keys()
    sources = {"child": load_file(child / "model.safetensors"), "reference": load_file(reference / "model.safetensors")}
    for name, origin in certificate.tensors.items():
        if origin.op == "constant":
            assert origin.source == "0" and not saved[name].any()
            continue
        owner, _, source = origin.source.partition("/")
        assert torch.equal(saved[name], sources[owner][source].to(saved[name].dtype)), name
    assert any(origin.op == "constant" for origin in certificate.tensors.values())


def test_added_no_ops_leave_the_logits_bit_for_bit(family, grown_from, tmp_path):
    reference, child = grown_from(family)
    certificate = deepen(child, reference, tmp_path / "deep", layers=4, added="identity")
    assert certificate.max_abs_difference == 0.0
    assert torch.equal(logits(tmp_path / "deep"), logits(child))
    assert "0 in the added layers" in certificate.notes[-1]


EXPECTED = {
    "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "qwen3": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "gpt2": {"attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"},
    "gpt_neox": {
        *("attention.dense.weight", "attention.dense.bias", "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias")
    },
    "opt": {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "fc2.weight", "fc2.bias"},
    "phi3": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "qwen3_moe": {"self_attn.o_proj.weight", "mlp.experts.down_proj"},
    "mamba": {"mixer.out_proj.weight"},
}


@pytest.mark.parametrize("family", EXPECTED)
def test_what_is_zeroed_are_the_output_projections_alone(family, build_model):
    model = build_model(family)
    path = find_layers(model).path
    assert {name.removeprefix(f"{path}.3.") for name in make_identity(model, 3)} == EXPECTED[family]


def test_a_no_op_is_not_dead(family, build_model):
    model = build_model(family)
    zeroed = make_identity(model, 3)
    model.train()
    output = model(input_ids=IDS, labels=IDS, use_cache=False)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradients[name] is not None and bool(gradients[name].any()) for name in zeroed if "bias" not in name)


def test_a_layer_with_a_norm_after_the_sum_is_refused_and_left_as_it_was(build_model, save_reference, tmp_path):
    model = build_model("opt", do_layer_norm_before=False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(SurgeryError, match=r"'opt' cannot begin as a no-op.*growth.mode: continue"):
        make_identity(model, 3)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    reference = save_reference("opt", tmp_path / "reference", do_layer_norm_before=False)
    inherit(reference, tmp_path / "child", layers=2)
    with pytest.raises(SurgeryError):
        deepen(tmp_path / "child", reference, tmp_path / "deep", layers=4, added="identity")
    assert not (tmp_path / "deep").exists()
    assert not list(tmp_path.glob(".deepen-*"))


def test_the_weights_given_take_the_place_of_those_in_the_folder(grown_from, tmp_path):
    reference, child = grown_from("llama")
    given = {name: parameter.detach() + 1 for name, parameter in load_model(child).named_parameters()}
    deepen(child, reference, tmp_path / "deep", layers=3, weights=given)
    deep = dict(load_model(tmp_path / "deep").named_parameters())
    assert all(torch.equal(deep[name], tensor) for name, tensor in given.items())


def test_what_is_no_child_of_the_reference_is_refused(grown_from, save_reference, tmp_path):
    reference, child = grown_from("llama")
    with pytest.raises(SurgeryError, match="has 2 layers already"):
        deepen(child, reference, tmp_path / "deep", layers=2)
    other = save_reference("llama", tmp_path / "other", hidden_size=64, head_dim=16)
    with pytest.raises(SurgeryError, match=r"tensor .* is of shape .* in the deeper model"):
        deepen(child, other, tmp_path / "deep", layers=3)
    assert not (tmp_path / "deep").exists()
