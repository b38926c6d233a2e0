import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.recheck import recheck
from inheritune.surgery.transplant import inherit


@pytest.fixture
def reference(save_reference, tmp_path):
    return save_reference("llama", tmp_path / "reference")


@pytest.fixture
def child(reference, tmp_path):
    inherit(reference, tmp_path / "child", layers=2)
    return tmp_path / "child"


def edit(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("layers", [2, 4, [0, 3]])
def test_child_that_nobody_has_touched_holds(family, layers, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    made = inherit(folder, tmp_path / "child", layers=layers)
    assert recheck(tmp_path / "child", folder) == made


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float32"])
def test_converted_child_holds(dtype, reference, tmp_path):
    made = inherit(reference, tmp_path / "child", layers=2, dtype=dtype)
    assert recheck(tmp_path / "child", reference) == made


def test_child_in_shards_holds_against_a_reference_in_shards(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    inherit(folder, tmp_path / "child", layers=3, max_shard_bytes=30_000)
    assert recheck(tmp_path / "child", folder).kind == "prefix"


def test_trained_child_is_told_by_the_tensors_that_have_changed(reference, child):
    edit(child, "model.norm.weight", lambda tensor: tensor + 1)
    edit(child, "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor + 1)
    with pytest.raises(
        SurgeryError,
        match=r"2 of 21 tensors have other bytes .*first: 'model\.layers\.1\.mlp\.up_proj\.weight'.*trained",
    ):
        recheck(child, reference)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_reference_whose_kept_tensor_has_changed_is_told_by_the_tensor(name, reference, child):
    edit(reference, name, lambda tensor: tensor + 1)
    with pytest.raises(SurgeryError, match=rf"1 of 21 tensors have other bytes there than in the child .*'{name}'"):
        recheck(child, reference)


def test_tensor_that_the_child_does_not_have_may_change_in_the_reference(reference, child):
    edit(reference, "model.layers.3.mlp.up_proj.weight", lambda tensor: tensor + 1)
    assert recheck(child, reference).kind == "prefix"


@pytest.mark.parametrize(("field", "value"), [("rms_norm_eps", 0.5), ("num_hidden_layers", 1), ("made_up", True)])
def test_config_that_was_edited_is_told_by_the_field(field, value, reference, child):
    edit_config(child, **{field: value})
    with pytest.raises(
        SurgeryError, match=rf"config\.json is not what the cut gives: 1 fields differ, the first is {field}"
    ):
        recheck(child, reference)


def test_tensor_too_few_or_too_many_is_told_by_name(reference, child):
    tensors = load_file(child / "model.safetensors")
    save_file({**tensors, "extra": torch.ones(2)}, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"1 tensors its files hold, .* \(first: 'extra'\)"):
        recheck(child, reference)
    del tensors["model.norm.weight"]
    save_file(tensors, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"1 tensors its certificate names, .* \(first: 'model\.norm\.weight'\)"):
        recheck(child, reference)


def test_another_model_is_not_the_reference(save_reference, child, tmp_path):
    with pytest.raises(SurgeryError, match=r"is not the reference of this child|is not what the cut gives"):
        recheck(child, save_reference("gpt2", tmp_path / "other"))


def test_certificate_that_names_another_source_is_refused(reference, child):
    value = json.loads((child / "certificate.json").read_text())
    value["tensors"]["model.norm.weight"]["from"] = "model.embed_tokens.weight"
    (child / "certificate.json").write_text(json.dumps(value))
    with pytest.raises(SurgeryError, match=r"first: 'model\.norm\.weight' from 'model\.norm\.weight'"):
        recheck(child, reference)


def test_grown_child_and_folder_without_certificate_are_refused(reference, child):
    value = json.loads((child / "certificate.json").read_text())
    (child / "certificate.json").write_text(json.dumps({**value, "kind": "grown"}))
    with pytest.raises(SurgeryError, match="was grown from a trained child"):
        recheck(child, reference)
    with pytest.raises(SurgeryError, match=r"no certificate\.json"):
        recheck(reference, reference)


def test_tensor_of_the_models_own_initialiser_is_held_against_its_hash_only(reference, child):
    certificate = Certificate.load(child).to_json()
    certificate |= {"kind": "bytes", "max_abs_difference": None}
    certificate["tensors"]["model.norm.weight"] |= {"from": "init", "op": "init"}
    (child / "certificate.json").write_text(json.dumps(certificate))
    edit(reference, "model.norm.weight", lambda tensor: tensor + 1)
    assert recheck(child, reference).tensors["model.norm.weight"].op == "init"


def test_nothing_is_written(reference, child):
    before = {path: path.stat().st_mtime_ns for path in [*reference.rglob("*"), *child.rglob("*")]}
    recheck(child, reference)
    assert {path: path.stat().st_mtime_ns for path in [*reference.rglob("*"), *child.rglob("*")]} == before
