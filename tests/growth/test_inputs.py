import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import DataError, SurgeryError
from inheritune.growth import inputs
from inheritune.growth.inputs import find_reference, hold_to_reference

COMMIT = 40 * "a"


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "provenance.json").write_text('{"command": ["inheritune"]}')
    return tmp_path / "run"


@pytest.fixture
def snapshot(tmp_path, save_reference):
    return save_reference("llama", tmp_path / "models--owner--name" / "snapshots" / COMMIT)


def test_a_hub_id_is_held_to_the_commit_that_the_run_began_with(run_folder, snapshot, monkeypatch):
    asked = []
    monkeypatch.setattr(inputs, "resolve", lambda name, revision: asked.append(revision) or snapshot)
    hold_to_reference(run_folder, find_reference(run_folder, "owner/name", "main"), "main")
    hold_to_reference(run_folder, find_reference(run_folder, "owner/name", "main"), "main")
    assert asked == ["main", COMMIT]
    recorded = json.loads((run_folder / "provenance.json").read_text())
    assert recorded["command"] == ["inheritune"]
    assert recorded["reference"]["revision"] == COMMIT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("{ }"), "config.json has other bytes"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is gone"),
        (lambda folder: (folder / "adapter.safetensors").write_bytes(b""), "adapter.safetensors is new"),
    ],
)
def test_every_change_of_config_or_weights_is_named(run_folder, snapshot, change, said):
    hold_to_reference(run_folder, snapshot, None)
    change(snapshot)
    with pytest.raises(SurgeryError, match=said):
        hold_to_reference(run_folder, snapshot, None)


def test_other_files_of_the_reference_may_change(run_folder, snapshot):
    hold_to_reference(run_folder, snapshot, None)
    (snapshot / "README.md").write_text("a better card")
    hold_to_reference(run_folder, snapshot, None)


def spoil(folder, name, dtype=torch.float32):
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors[name].numel()


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_with_weights_that_are_not_finite_is_refused_by_tensor(name, dtype, run_folder, snapshot):
    count = spoil(snapshot, name, dtype)
    for _ in range(2):
        with pytest.raises(SurgeryError, match=rf"1 of {count} values of tensor '{name}' .* are NaN or infinite"):
            hold_to_reference(run_folder, snapshot, None)
    assert "reference" not in json.loads((run_folder / "provenance.json").read_text())


def test_the_weights_are_read_once_at_a_first_start(run_folder, snapshot, monkeypatch):
    monkeypatch.setattr(inputs.runs, "file_sha256", lambda path: path.name)
    hold_to_reference(run_folder, snapshot, None)
    recorded = json.loads((run_folder / "provenance.json").read_text())["reference"]
    assert len(recorded["sha256"]["model.safetensors"]) == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json has other bytes"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), r"tokenizer_config\.json has other bytes"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is gone"),
        (lambda folder: (folder / "special_tokens_map.json").write_text("{}"), r"special_tokens_map\.json is new"),
    ],
)
def test_every_change_of_the_tokenizer_is_named_before_anything_else_is_done(run_folder, snapshot, change, said):
    hold_to_reference(run_folder, snapshot, None)
    change(snapshot)
    with pytest.raises(SurgeryError, match=rf"the reference's tokenizer changed since .*{said}.*--fresh"):
        find_reference(run_folder, str(snapshot), None)
    with pytest.raises(SurgeryError, match=said):
        hold_to_reference(run_folder, snapshot, None)


def test_a_run_that_recorded_no_tokenizer_goes_on(run_folder, snapshot):
    hold_to_reference(run_folder, snapshot, None)
    path = run_folder / "provenance.json"
    provenance = json.loads(path.read_text())
    assert set(provenance["reference"].pop("tokenizer_sha256")) >= {"tokenizer.json", "tokenizer_config.json"}
    path.write_text(json.dumps(provenance))
    (snapshot / "tokenizer_config.json").write_text("{}")
    assert find_reference(run_folder, str(snapshot), None) == snapshot
    hold_to_reference(run_folder, snapshot, None)


def test_a_tokenizer_larger_than_the_embedding_is_refused_when_the_reference_is_found(
    run_folder, tmp_path, save_reference
):
    padded = save_reference("llama", tmp_path / "padded", vocab_size=300)
    assert find_reference(run_folder, str(padded), None) == padded
    equal = save_reference("llama", tmp_path / "equal", vocab_size=257)
    assert find_reference(run_folder, str(equal), None) == equal
    small = save_reference("llama", tmp_path / "small", vocab_size=256, bos_token_id=0, eos_token_id=0)
    with pytest.raises(DataError, match=r"token id 256 \('<\|endoftext\|>'\), and .* has 256 rows \(ids 0 to 255\)"):
        find_reference(run_folder, str(small), None)
