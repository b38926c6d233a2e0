import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inheritune.surgery.anatomy import Anatomy
from inheritune.surgery.layer_maths import changed_settings, is_same

ANATOMY = Anatomy("layers", 4, "num_hidden_layers", (), "llama")


class Layer(nn.Module):
    def __init__(self, layer_idx, **settings):
        super().__init__()
        self.layer_idx = layer_idx
        self.inner = nn.Dropout(settings.pop("dropout", 0.0))
        for name, value in settings.items():
            setattr(self, name, value)


def model(*settings):
    held = nn.Module()
    held.layers = nn.ModuleList([Layer(index, **each) for index, each in enumerate(settings)])
    return held


def test_layers_that_only_know_their_own_index_are_the_same():
    assert changed_settings(model(*[{}] * 4), model(*[{}] * 2), ANATOMY, [1, 3]) == []


@pytest.mark.parametrize(
    ("had", "has"), [(0.5, 0.25), ("full", "sliding"), (True, False), (3, 4), ([1.0], [2.0]), (None, 8)]
)
def test_setting_that_differs_is_named_with_both_values(had, has):
    reference, child = model({}, {}, {}, {"it": had}), model({}, {"it": has})
    assert changed_settings(reference, child, ANATOMY, [0, 3]) == [("layers.1.it", had, has)]


def test_settings_of_modules_inside_a_layer_and_their_classes_are_compared():
    reference, child = model({}, {"dropout": 0.1}), model({"dropout": 0.2})
    assert changed_settings(reference, child, ANATOMY, [1]) == [("layers.0.inner.p", 0.1, 0.2)]
    child.layers[0].inner = nn.Identity()
    assert changed_settings(reference, child, ANATOMY, [1]) == [("layers.0.inner", "Dropout", "Identity")]


def test_tensors_and_configs_are_no_settings():
    reference, child = model({"it": torch.ones(1)}), model({"it": torch.zeros(1)})
    assert changed_settings(reference, child, ANATOMY, [0]) == []


@given(kinds=st.lists(st.sampled_from("ab"), min_size=1, max_size=12), data=st.data())
def test_list_about_all_layers_is_the_same_if_it_is_that_of_the_kept_ones(kinds, data):
    layers = sorted(data.draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1)))
    places = {index: place for place, index in enumerate(layers)}
    assert is_same(kinds, [kinds[index] for index in layers], places)
    assert is_same(layers, list(range(len(layers))), places)
    assert not is_same(kinds, ["c"] * len(layers), places)


def test_numbers_are_the_same_if_they_are_so_to_a_float32_tensor():
    assert is_same(0.404145188432738, 0.40414518843273806, {0: 0})
    assert not is_same(0.4041451, 0.4041453, {0: 0})
    assert is_same(float("inf"), float("inf"), {0: 0})
