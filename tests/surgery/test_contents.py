import json
import struct

import pytest
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery import tensor_file
from inheritune.surgery.contents import read_contents

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 4
    return folder


def found(folder):
    return {(finding.severity, finding.kind, finding.where) for finding in read_contents(folder).findings}


def test_whole_folder_has_no_finding(sharded):
    contents = read_contents(sharded)
    assert contents.are_whole and not contents.findings
    assert set(contents.tensors) == {name for file in contents.files for name in load_file(sharded / file)}


def test_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(SurgeryError, match="cannot be read"):
        read_contents(tmp_path / "file")


def test_empty_folder_lacks_config_and_weights(tmp_path):
    assert {(severity, kind) for severity, kind, _ in found(tmp_path)} == {("fault", "config"), ("fault", "weights")}


def test_folder_in_the_place_of_a_file_is_no_file(tmp_path):
    for name in ("config.json", "model.safetensors", INDEX):
        (tmp_path / name).mkdir()
    assert {kind for _, kind, _ in found(tmp_path)} == {"file", "weights"}


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", pytest.param("[" * 100_000, id="nested"), '{"a": {"__float__": 0}}']
)
def test_config_that_is_no_object_is_a_finding_and_the_weights_are_read_on(content, sharded):
    (sharded / "config.json").write_text(content)
    contents = read_contents(sharded)
    assert contents.config is None or content.startswith('{"a"')
    assert contents.are_whole and contents.tensors


def test_every_damaged_and_every_missing_shard_is_named_and_the_others_are_read(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[1].write_bytes(struct.pack("<Q", 2**63) + b"{}")
    shards[2].unlink()
    contents = read_contents(sharded)
    places = [finding.where for finding in contents.findings if finding.kind == "shard"]
    assert sorted(places) == sorted([shards[0].name, shards[1].name, INDEX])
    assert any(shards[2].name in finding.what for finding in contents.findings)
    assert not contents.are_whole
    assert set(contents.tensors) == {name for shard in shards[3:] for name in load_file(shard)}


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin", 3])
def test_file_that_an_index_names_elsewhere_is_a_fault_and_is_not_read(shard, sharded, monkeypatch):
    save_file(load_file(next(sharded.glob("model-*"))), sharded.parent / "other.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    contents = read_contents(sharded)
    assert any(finding.kind == "index" and repr(shard) in finding.what for finding in contents.findings)
    assert all(entry.file.parent == sharded for entry in contents.tensors.values())


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00005.safetensors", INDEX, "tokenizer.json"])
def test_link_that_leaves_the_folder_is_a_fault_and_is_not_followed(name, sharded, monkeypatch):
    path = sharded / name if (sharded / name).exists() else sorted(sharded.glob("model-*"))[0]
    path.rename(sharded.parent / "elsewhere")
    path.symlink_to("../elsewhere")
    contents = read_contents(sharded)
    assert ("fault", "file", path.name) in found(sharded)
    assert path.name not in contents.names
    assert not any(entry.file == path for entry in contents.tensors.values())


def test_links_of_a_hub_snapshot_to_its_blobs_are_followed(sharded, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    contents = read_contents(snapshot)
    assert contents.are_whole and not contents.findings


@pytest.mark.parametrize(("change", "said"), [
    (lambda places: places.pop("model.norm.weight"), "leaves out 1 tensors"),
    (lambda places: places.update({"ghost.weight": places["model.norm.weight"]}), "promises 1 tensors"),
    (lambda places: places.update({"model.norm.weight": places["lm_head.weight"]}), "places 1 tensors in another"),
])  # fmt: skip
def test_index_that_disagrees_with_its_files_is_a_fault(change, said, sharded):
    index = json.loads((sharded / INDEX).read_text())
    assert index["weight_map"]["model.norm.weight"] != index["weight_map"]["lm_head.weight"]
    change(index["weight_map"])
    (sharded / INDEX).write_text(json.dumps(index))
    (finding,) = read_contents(sharded).findings
    assert finding.severity == "fault" and said in finding.what


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_index_that_is_none_is_a_fault(content, sharded):
    (sharded / INDEX).write_text(content)
    assert ("fault", "index", INDEX) in found(sharded)


def test_weights_without_an_index_are_found_under_whatever_names(sharded):
    before = read_contents(sharded).tensors
    (sharded / INDEX).unlink()
    contents = read_contents(sharded)
    assert [finding.kind for finding in contents.findings] == ["index"]
    assert set(contents.tensors) == set(before) and contents.are_whole


def test_tensor_in_two_files_is_a_fault(sharded):
    (sharded / INDEX).unlink()
    shard = sorted(sharded.glob("model-*"))[0]
    (sharded / "model-1.safetensors").write_bytes(shard.read_bytes())
    assert ("fault", "shard", f"{shard.name}, model-1.safetensors") in found(sharded)


def test_name_with_a_number_that_no_layer_has_is_a_fault(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.{'1' * 500}.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    (finding,) = read_contents(folder).findings
    assert "numbered beyond any layer" in finding.what and len(finding.what) < 200


def test_pickle_alone_is_a_fault_and_beside_weights_a_note(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert found(folder) == {("note", "pickle", "pytorch_model.bin")}
    (folder / "model.safetensors").unlink()
    assert found(folder) == {("fault", "pickle", "pytorch_model.bin")}


def test_what_lies_beside_the_model_is_named(sharded):
    tensor = load_file(next(sharded.glob("model-*")))
    save_file(tensor, sharded / "model-9.safetensors")
    save_file(tensor, sharded / "consolidated.safetensors")
    (sharded / "modeling_own.py").write_text("raise SystemExit('run')")
    assert found(sharded) == {
        ("warning", "left over", "model-9.safetensors"),
        ("note", "other weights", "consolidated.safetensors"),
        ("note", "code", "modeling_own.py"),
    }


def test_adapter_beside_the_weights_is_a_fault(sharded):
    (sharded / "adapter_config.json").write_text("{}")
    assert found(sharded) == {("fault", "adapter", "adapter_config.json")}


def test_only_headers_are_read(sharded, monkeypatch):
    monkeypatch.setattr(tensor_file, "chunks", lambda _entry: pytest.fail("a weight was read"))
    assert read_contents(sharded).are_whole
