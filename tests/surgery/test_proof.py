import json

import pytest
import torch

from inheritune.errors import SurgeryError
from inheritune.surgery import layer_stream, proof
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.folder import check_files, load_model
from inheritune.surgery.proof import NotProved, States, first_difference, largest_difference, states_of, trace
from inheritune.surgery.transplant import inherit


def broken_loader(*_arguments):
    raise AttributeError("another transformers")


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize(("num_layers", "to_the_end"), [(2, False), (4, True)])
def test_loader_that_cannot_go_by_layer_changes_no_bit(
    family, num_layers, to_the_end, save_reference, tmp_path, monkeypatch
):
    weights = check_files(save_reference(family, tmp_path / "reference"))
    one = states_of(weights, num_layers, to_the_end=to_the_end, is_child=False)
    monkeypatch.setattr(layer_stream, "load_into", broken_loader)
    other = states_of(weights, num_layers, to_the_end=to_the_end, is_child=False)
    assert first_difference(one, other) == (0.0, "")
    assert (one.logits_BTV is None) is (other.logits_BTV is None) is not to_the_end
    assert len(one.hidden_BTD) == len(other.hidden_BTD) == num_layers


def test_states_are_those_of_the_trace(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    states = states_of(check_files(folder), 4, to_the_end=True, is_child=False)
    traced = trace(load_model(folder), 3)
    assert torch.equal(states.hidden_BTD[max(states.hidden_BTD)], traced.hidden_BTD)
    assert torch.equal(states.logits_BTV, traced.logits_BTV)


@pytest.mark.parametrize("by_layer", [True, False])
def test_reference_that_fits_in_no_way_is_certified_by_bytes_and_says_why(
    by_layer, save_reference, tmp_path, monkeypatch
):
    folder = save_reference("llama", tmp_path / "reference")
    monkeypatch.setattr(proof, "_available_bytes", lambda: 1000)
    if not by_layer:
        monkeypatch.setattr(layer_stream, "load_into", broken_loader)
    with pytest.raises(NotProved):
        states_of(check_files(folder), 2, to_the_end=False, is_child=False)
    certificate = inherit(folder, tmp_path / "child", layers=2)
    assert certificate.kind == "bytes" and certificate.max_abs_difference is None
    expected = (
        "one layer in float32" if by_layer else r"cannot be run layer by layer (AttributeError: another transformers)"
    )
    assert any(expected in note and "bytes were compared" in note for note in certificate.notes)
    assert Certificate.load(tmp_path / "child") == certificate


def test_reference_with_room_for_two_layers_only_is_proved(save_reference, tmp_path, monkeypatch):
    folder = save_reference("llama", tmp_path / "reference", num_hidden_layers=30)
    weights = check_files(folder)
    stream = layer_stream.LayerStream(weights)
    needed = 1.2 * 4 * sum(entry.num_bytes // 4 for entry in stream.in_memory(20, head=False))
    assert needed < 0.2 * sum(entry.num_bytes for entry in weights.tensors.values())
    monkeypatch.setattr(proof, "_available_bytes", lambda: needed + 1)
    assert inherit(folder, tmp_path / "child", layers=20).max_abs_difference == 0.0


def test_reference_whose_files_are_not_those_of_its_config_is_refused(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "head_dim": 8}))
    with pytest.raises(SurgeryError, match="are not those of its config"):
        states_of(check_files(folder), 2, to_the_end=False, is_child=False)


def test_first_layer_that_differs_is_named():
    same, other = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 0.5)

    def states(*hidden, logits=None):
        return States(dict(enumerate(hidden)), logits)

    assert first_difference(states(same, same, logits=same), states(same, same, logits=same)) == (0.0, "")
    assert first_difference(states(same, same, same), states(same, other, 2 * other)) == (1.0, "after layer 1")
    assert first_difference(states(same, logits=same), states(same, logits=other)) == (0.5, "in the logits")


def test_layer_that_runs_in_one_of_the_two_alone_is_infinitely_different():
    same = torch.zeros(1, 2, 3)
    found = first_difference(States({0: same, 2: same}, None), States({0: same, 1: same, 2: same}, None))
    assert found == (float("inf"), "in layer 1, which runs in one of the two alone")


@pytest.mark.parametrize("found", [torch.zeros(2), torch.tensor([0.0, 0.0, float("nan")])])
def test_other_shape_or_nan_is_infinitely_different(found):
    assert largest_difference(torch.zeros(3), found) == float("inf")
