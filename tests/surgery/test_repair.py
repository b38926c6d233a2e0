import json

import pytest
import torch
from architectures import cutting
from architectures.nursery import TYPES_OF_LONG_FORM, save, silence
from passthrough import KINDS, layer_stem, make
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery import repair as repair_module
from inheritune.surgery.doctor import diagnose
from inheritune.surgery.folder import load_model
from inheritune.surgery.repair import repair
from inheritune.surgery.transplant import inherit

REFUSED = ("tensor lost", "head differs", "without config")


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def layers_left(tensors):
    """The numbers in the names of the largest list of layers."""
    stem = layer_stem(list(tensors))
    return {name.removeprefix(stem).split(".")[0] for name in tensors if name.startswith(stem)}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def check_repairs(parent, folder, depth):
    """Every wrong folder of a parent is mended to what the parent computes, or refused and left alone; gives the mended
    kinds."""
    for kind in KINDS:
        wrong, mended = folder / kind, folder / f"{kind}, mended"
        if not make(kind, parent, wrong, depth):
            continue
        before = snapshot(wrong)
        try:
            found = repair(wrong, mended)
        except SurgeryError:
            assert not mended.exists(), kind
        else:
            assert found.is_sound and found.folder == str(mended) and kind not in REFUSED
            whole = layers_left(all_tensors(parent)) == layers_left(all_tensors(wrong))
            expected = cutting.load(parent)
            kept = len(expected.get_submodule(cutting.layers_path(expected))) if whole else depth
            assert cutting.compare(expected, cutting.load(mended), kept) == 0.0, kind
            yield kind
        assert snapshot(wrong) == before, kind


def test_wrong_folder_of_a_passthrough_becomes_the_child_that_it_should_be(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=2, verify=False)
    for kind in ("depth unchanged", "lists unchanged", "stale index"):
        if make(kind, reference, tmp_path / kind, 2):
            found = repair(tmp_path / kind, tmp_path / f"{kind}, mended")
            assert found.is_sound and found.held_depth == 2
            assert config_of(tmp_path / f"{kind}, mended") == config_of(tmp_path / "child")
            expected, mended = all_tensors(tmp_path / "child"), all_tensors(tmp_path / f"{kind}, mended")
            assert expected.keys() == mended.keys()
            assert all(torch.equal(tensor, mended[name]) for name, tensor in expected.items())
            load_model(tmp_path / f"{kind}, mended")


@pytest.mark.parametrize("model_type", ["gemma3n_text", "minicpm3", "nemotron_h"])
def test_repair_of_an_exceptional_type_computes_what_its_parent_does(model_type, tmp_path):
    with silence():
        parent = save(model_type, tmp_path / "parent")
        make("depth unchanged", parent, tmp_path / "wrong", 5)
        assert repair(tmp_path / "wrong", tmp_path / "mended").is_sound
        assert cutting.compare(cutting.load(parent), cutting.load(tmp_path / "mended"), 5) == 0.0


@pytest.mark.parametrize("model_type", TYPES_OF_LONG_FORM)
def test_of_every_type_a_repair_is_exact_or_refused(model_type, tmp_path):
    with silence():
        list(check_repairs(save(model_type, tmp_path / "parent"), tmp_path, 5))


def test_config_that_cannot_state_the_layers_is_not_mended(tmp_path):
    """Gemma 4 makes its last layer one of full attention, whatever it was."""
    with silence():
        parent = save("gemma4_text", tmp_path / "parent", 12)
        make("depth unchanged", parent, tmp_path / "wrong", 5)
        with pytest.raises(SurgeryError, match=r"not repaired.*cannot be cut exactly"):
            repair(tmp_path / "wrong", tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


def test_head_that_is_written_twice_is_dropped_and_nothing_else(save_reference, tmp_path):
    reference = save_reference("gemma2", tmp_path / "reference")
    make("head twice", reference, tmp_path / "wrong", 4)
    repair(tmp_path / "wrong", tmp_path / "mended")
    expected, mended = all_tensors(reference), all_tensors(tmp_path / "mended")
    assert expected.keys() == mended.keys()
    assert all(torch.equal(tensor, mended[name]) for name, tensor in expected.items())


def test_fields_of_prediction_layers_that_are_not_there_are_set_to_none(tmp_path):
    with silence():
        parent = save("deepseek_v3", tmp_path / "parent", 4)
        assert config_of(parent)["num_nextn_predict_layers"] == 1
        repair(parent, tmp_path / "mended")
    assert config_of(tmp_path / "mended")["num_nextn_predict_layers"] == 0
    assert (tmp_path / "mended" / "model.safetensors").read_bytes() == (parent / "model.safetensors").read_bytes()


def test_weight_files_in_which_nothing_changes_are_copied_whole(save_reference, tmp_path):
    reference = save_reference("qwen3", tmp_path / "reference")
    make("temporary shards", reference, tmp_path / "wrong", 2)
    repair(tmp_path / "wrong", tmp_path / "mended")
    for number in (1, 2):
        old, new = f"model-{number}.safetensors", f"model-{number:05}-of-00002.safetensors"
        assert (tmp_path / "mended" / new).read_bytes() == (tmp_path / "wrong" / old).read_bytes()
    index = json.loads((tmp_path / "mended" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(all_tensors(tmp_path / "mended"))


def test_tokenizer_goes_along_and_pickle_and_leftovers_do_not(save_reference, tmp_path):
    reference = save_reference("qwen3", tmp_path / "reference", num_hidden_layers=4)
    config = config_of(reference)
    (reference / "config.json").write_text(json.dumps(config | {"layer_types": ["full_attention"] * 6}))
    save_file({"norm": torch.ones(2)}, reference / "model-9.safetensors")
    (reference / "training_args.bin").write_bytes(b"")
    repair(reference, tmp_path / "mended")
    kept = {path.name for path in (tmp_path / "mended").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= kept
    assert not {"model-9.safetensors", "training_args.bin"} & kept


def test_repair_says_what_it_has_changed(save_reference, tmp_path):
    reference = save_reference("gemma3_text", tmp_path / "reference")
    make("depth unchanged", reference, tmp_path / "wrong", 3)
    found = repair(tmp_path / "wrong", tmp_path / "mended")
    done = {finding.where: finding.what for finding in found.findings if finding.kind == "mended"}
    assert done["config.json: num_hidden_layers"] == "4 before, 3 now"
    assert done["config.json: layer_types"] == "4 entries before, 3 entries now"
    assert "first ones" in done["config.json"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_certain_is_refused_with_the_reason_and_nothing_is_written(kind, save_reference, tmp_path):
    assert make(kind, save_reference("gemma2", tmp_path / "reference"), tmp_path / "wrong", 2)
    before = snapshot(tmp_path / "wrong")
    with pytest.raises(SurgeryError, match=r"not repaired, since it is not certain what is right: "):
        repair(tmp_path / "wrong", tmp_path / "mended")
    assert {path.name for path in tmp_path.iterdir()} == {"reference", "wrong"}
    assert snapshot(tmp_path / "wrong") == before


def test_folder_that_is_right_is_not_repaired(save_reference, tmp_path):
    with pytest.raises(SurgeryError, match="nothing to mend"):
        repair(save_reference("llama", tmp_path / "reference"), tmp_path / "mended")


def test_target_that_is_in_the_way_is_left_alone(save_reference, tmp_path):
    make("depth unchanged", save_reference("llama", tmp_path / "reference"), tmp_path / "wrong", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(SurgeryError, match="there already"):
        repair(tmp_path / "wrong", tmp_path / "mine")
    with pytest.raises(SurgeryError, match="lie in each other"):
        repair(tmp_path / "wrong", tmp_path / "wrong" / "inside")
    assert snapshot(tmp_path / "mine") == {"file": b"mine"}


def test_copy_that_would_still_have_a_fault_is_not_kept(save_reference, tmp_path, monkeypatch):
    make("depth unchanged", save_reference("llama", tmp_path / "reference"), tmp_path / "wrong", 2)
    monkeypatch.setattr(repair_module, "diagnose", lambda _new, **_options: diagnose(tmp_path / "wrong"))
    with pytest.raises(SurgeryError, match="would still have a fault"):
        repair(tmp_path / "wrong", tmp_path / "mended")
    assert {path.name for path in tmp_path.iterdir()} == {"reference", "wrong"}


def test_lost_shard_is_no_shallower_model(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "wrong")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.")}
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    assert any("shard [2] of them are not there" in each.what for each in diagnose(folder).faults)
    with pytest.raises(SurgeryError):
        repair(folder, tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


def test_values_that_are_not_finite_are_not_mended(save_reference, tmp_path):
    parent = save_reference("llama", tmp_path / "parent")
    make("depth unchanged", parent, tmp_path / "wrong", 2)
    path = tmp_path / "wrong" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SurgeryError):
        repair(tmp_path / "wrong", tmp_path / "mended", values=True)
