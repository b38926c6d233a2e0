import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery.folder import check_files, load_model, resolve

INDEX = "model.safetensors.index.json"


def test_existing_folder_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_folder_has_no_revision(tmp_path):
    with pytest.raises(SurgeryError, match="only a hub id has revisions"):
        resolve(tmp_path, "main")


@pytest.mark.parametrize("reference", ["./absent", "/absent/model", "a/b/c", "with space"])
def test_path_that_does_not_exist_and_is_no_hub_id_is_refused_without_a_network(reference, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: pytest.fail("network"))
    with pytest.raises(SurgeryError, match=r"no folder .* no hub id either"):
        resolve(reference)


def test_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SurgeryError, match="is a file"):
        resolve(tmp_path / "model.safetensors")


def test_hub_failure_says_both_readings(monkeypatch):
    def fail(*_arguments, **_settings):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SurgeryError, match=r"no folder 'owner/model'.*as a hub id \(revision v1\).*no connection"):
        resolve("owner/model", "v1")


def test_hub_id_fetches_no_code_and_no_pickle(tmp_path, monkeypatch):
    asked = {}

    def fetch(name, **settings):
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/model", "v1") == tmp_path
    assert asked["name"] == "owner/model" and asked["revision"] == "v1"
    assert not {"*", "*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])


def test_checked_tensors_are_those_of_the_file(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    weights = check_files(folder)
    assert len(weights.files) > 2
    expected = {name: tensor for file in weights.files for name, tensor in load_file(folder / file).items()}
    assert set(weights.tensors) == set(expected)
    for name, entry in weights.tensors.items():
        raw = entry.file.read_bytes()[entry.begin : entry.end]
        assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.float32), expected[name].flatten())
        assert entry.shape == tuple(expected[name].shape) and entry.dtype == "F32"


def test_folder_without_config_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "config.json").unlink()
    with pytest.raises(SurgeryError, match=r"no config\.json"):
        check_files(folder)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "null", '{"model_type": ["llama"]}', '{"model_type": "never_seen"}', '{"model_type": "bert_no"}'],
)
def test_config_that_names_no_causal_model_is_refused(content, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "config.json").write_text(content)
    with pytest.raises(SurgeryError, match=r"config\.json"):
        check_files(folder)


def test_model_of_remote_code_is_refused_by_name(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = {"model_type": "their_own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(SurgeryError, match=r"'their_own'.*remote code"):
        load_model(folder)


def test_own_code_beside_a_known_model_type_is_not_run(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    assert type(load_model(folder)).__name__ == "LlamaForCausalLM"


def test_pickled_weights_are_refused_with_the_way_to_convert_them(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SurgeryError, match=r"pickle \(pytorch_model\.bin\).*save_pretrained"):
        check_files(folder)


def test_folder_without_weights_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SurgeryError, match=r"neither model\.safetensors nor"):
        check_files(folder)


def test_missing_shard_is_named(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SurgeryError, match=f"{shard.name} is missing"):
        check_files(folder)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin", 3])
def test_index_that_leaves_the_folder_is_refused(shard, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(SurgeryError, match="index"):
        check_files(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}', "[]", '{"weight_map": {"a": []}}'])
def test_index_that_is_none_is_refused(content, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    (folder / INDEX).write_text(content)
    with pytest.raises(SurgeryError, match="not an index"):
        check_files(folder)


def test_index_that_disagrees_with_its_shards_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(SurgeryError, match=r"model\.ghost\.weight"):
        check_files(folder)


def test_loaded_model_is_the_saved_one_in_eval_mode(family, build_model, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    model = load_model(folder)
    assert not model.training
    expected = build_model(family).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "mismatched"])
def test_model_with_a_wrong_tensor_is_not_loaded(fault, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors["model.norm.weight"]
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "unexpected":
        tensors["model.extra.weight"] = norm.clone()
    else:
        tensors["model.norm.weight"] = torch.ones(len(norm) + 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=str(tmp_path)):
        load_model(folder)
