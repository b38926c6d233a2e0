import json

import pytest

from inheritune.errors import SurgeryError
from inheritune.growth import inputs
from inheritune.growth.inputs import find_reference, hold_to_reference

COMMIT = 40 * "a"


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "provenance.json").write_text('{"command": ["inheritune"]}')
    return tmp_path / "run"


@pytest.fixture
def snapshot(tmp_path):
    folder = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


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
