import math

import numpy as np
import pytest
import torch
from torch import nn

from inheritune.analysis import depth
from inheritune.analysis.depth import measure_depths
from inheritune.errors import EvaluationError
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.transplant import inherit

WINDOW = 24


@pytest.fixture(scope="module")
def documents():
    generator = np.random.default_rng(0)
    return [np.append(256, generator.integers(0, 256, size)) for size in (40, 17, 30, 9, 55)]


def silence(layer):
    """Make a Llama layer add nothing to its input."""
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def test_every_prefix_of_every_family_loses_what_the_cut_child_loses(family, build_model, documents, tmp_path):
    model = build_model(family)
    found = measure_depths(model, documents, sequence_length=WINDOW)
    whole = score_documents(model, documents, sequence_length=WINDOW)
    np.testing.assert_allclose(found.full, whole, rtol=1e-6)
    np.testing.assert_array_equal(found.prefixes[4], found.full)
    model.save_pretrained(tmp_path / "reference")
    inherit(tmp_path / "reference", tmp_path / "child", layers=2, verify=False)
    child = type(model).from_pretrained(tmp_path / "child").float()
    expected = score_documents(child, documents, sequence_length=WINDOW)
    np.testing.assert_allclose(found.prefixes[2], expected, rtol=1e-5)


def test_without_a_layer_a_model_loses_what_the_model_built_without_it_loses(build_model, documents):
    model = build_model("llama")
    found = measure_depths(model, documents, sequence_length=WINDOW)
    layers = list(model.model.layers)
    for layer in range(4):
        model.model.layers = nn.ModuleList(each for index, each in enumerate(layers) if index != layer)
        model.config.num_hidden_layers = 3
        expected = score_documents(model, documents, sequence_length=WINDOW)
        np.testing.assert_allclose(found.without[layer], expected, rtol=1e-6)


def test_influence_and_angles_are_those_of_the_hidden_states(build_model, documents):
    model = build_model("llama")
    found = measure_depths(model, [documents[1]], sequence_length=WINDOW)
    ids = torch.from_numpy(documents[1][None, :-1])
    layers, states = model.model.layers, []
    handles = [layers[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))]
    handles += [layer.register_forward_hook(lambda _l, _g, output: states.append(output)) for layer in layers]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for first in range(5):
        for last in range(5):
            if last <= first:
                assert math.isnan(found.angles[first, last])
                continue
            cosine = nn.functional.cosine_similarity(states[first][0].double(), states[last][0].double(), dim=-1)
            assert found.angles[first, last] == pytest.approx(float((cosine.acos() / math.pi).mean()), rel=1e-6)
            if last == first + 1:
                assert found.influence[first] == pytest.approx(float(1 - cosine.mean()), rel=1e-5, abs=1e-9)


def test_a_layer_that_does_nothing_ranks_last(build_model, documents):
    model = build_model("llama")
    silence(model.model.layers[2])
    found = measure_depths(model, documents, sequence_length=WINDOW)
    np.testing.assert_array_equal(found.without[2], found.full)
    np.testing.assert_array_equal(found.prefixes[3], found.prefixes[2])
    assert found.influence.argmin() == 2 and found.influence[2] == pytest.approx(0, abs=1e-9)


def test_a_useless_block_is_found(build_model, documents):
    model = build_model("llama", num_hidden_layers=6)
    for layer in (2, 3):
        silence(model.model.layers[layer])
    found = measure_depths(model, documents, sequence_length=WINDOW)
    blocks_of_two = {first: found.angles[first, first + 2] for first in range(5)}
    assert min(blocks_of_two, key=blocks_of_two.__getitem__) == 2
    assert blocks_of_two[2] == pytest.approx(0, abs=1e-6)


def test_the_model_comes_back_as_it_was(build_model, documents):
    model = build_model("gpt2").train()
    measure_depths(model, documents, sequence_length=WINDOW)
    assert model.training
    assert all("forward" not in layer.__dict__ and not layer._forward_hooks for layer in layer_modules(model))


def test_any_number_of_windows_at_once_gives_the_same(build_model, documents, monkeypatch):
    model = build_model("llama")
    expected = measure_depths(model, documents, sequence_length=WINDOW)
    monkeypatch.setattr("inheritune.analysis.depth.VALUES_AT_ONCE", 1)
    found = measure_depths(model, documents, sequence_length=WINDOW)
    for name in ("full", "prefixes", "without", "influence", "angles"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-9)
    assert token_mean(found.full) == pytest.approx(token_mean(expected.full), rel=1e-7)


def test_a_layer_with_nan_is_named(build_model, documents):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(EvaluationError, match="layer 2 gives values that are not finite"):
        measure_depths(model, documents, sequence_length=WINDOW)


def test_a_model_whose_head_does_not_split_is_refused(build_model, documents, monkeypatch):
    monkeypatch.setattr("inheritune.analysis.depth.split_head", lambda model: None)
    with pytest.raises(EvaluationError, match=r"head of a llama does not split.*--no-depth"):
        measure_depths(build_model("llama"), documents, sequence_length=WINDOW)


def test_a_model_whose_end_does_not_follow_from_its_last_layer_is_refused(build_model, documents):
    model = build_model("llama")
    first = []
    model.model.layers[0].register_forward_hook(lambda _l, _g, output: first.append(output))
    model.model.norm.register_forward_pre_hook(lambda _n, given: (given[0] + first[-1],))
    with pytest.raises(EvaluationError, match=r"does not follow from its last layer's alone.*--no-depth"):
        measure_depths(model, documents, sequence_length=WINDOW)


def test_batches_shrink_where_memory_runs_out(build_model, documents, monkeypatch):
    model = build_model("llama")
    whole = measure_depths(model, documents, sequence_length=16)
    measure, sizes = depth._measure_batch, []

    def tight(replay, texts, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(batch))
        return measure(replay, texts, batch)

    monkeypatch.setattr(depth, "_measure_batch", tight)
    again = measure_depths(model, documents, sequence_length=16)
    assert max(sizes) == 2
    assert again.prefixes == pytest.approx(whole.prefixes, rel=1e-5)
    assert again.without == pytest.approx(whole.without, rel=1e-5)


def test_one_window_that_does_not_fit_is_an_error(build_model, documents, monkeypatch):
    def full(replay, texts, batch):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(depth, "_measure_batch", full)
    with pytest.raises(EvaluationError, match="not enough memory for the states of one window of 16 tokens"):
        measure_depths(build_model("llama"), documents, sequence_length=16)


def test_another_error_is_not_taken_for_memory(build_model, documents, monkeypatch):
    def broken(replay, texts, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(depth, "_measure_batch", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure_depths(build_model("llama"), documents, sequence_length=16)
