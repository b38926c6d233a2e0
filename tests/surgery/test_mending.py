import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery.folder import check_files, read_config
from inheritune.surgery.mending import (
    Held,
    deeper_depths,
    depth_field,
    held_layers,
    mend,
    stale_indices,
    stale_prediction,
    without_prediction,
)
from inheritune.surgery.tensor_names import LayerNames

NAMES = LayerNames("model.layers.", "")


def held(indices, stated, num_predicting=0):
    names = ["model.embed_tokens.weight", *(f"model.layers.{index}.weight" for index in indices)]
    return held_layers(names, NAMES, stated, num_predicting)


@given(st.sets(st.integers(0, 30)), st.integers(1, 30), st.integers(0, 2))
def test_held_depth_is_the_run_of_layers_from_0_and_every_other_layer_is_beyond(indices, stated, num_predicting):
    found = held(indices, stated, num_predicting)
    assert set(range(found.depth)) | set(found.beyond) == indices
    assert found.depth not in indices or found.depth == stated


def test_layers_of_prediction_are_not_counted():
    assert held(range(5), stated=4, num_predicting=1) == Held(4, (4,))
    assert held(range(6), stated=4, num_predicting=1) == Held(6, ())
    assert held(range(5), stated=4) == Held(5, ())


@pytest.mark.parametrize(("text", "field"), [
    ({"model_type": "gpt2", "n_layer": 3}, "n_layer"),
    ({"model_type": "llama", "num_hidden_layers": 3}, "num_hidden_layers"),
    ({"model_type": "never_seen", "n_layers": 3}, "n_layers"),
    ({"model_type": ["llama"], "num_layers": 3}, "num_layers"),
    ({"model_type": "llama", "num_hidden_layers": "3"}, None),
    ({}, None),
])  # fmt: skip
def test_depth_is_stated_where_the_class_or_custom_has_it(text, field):
    assert depth_field(text) == field


def test_likeliest_depth_is_that_of_most_lists():
    text = {"layer_types": ["a"] * 12, "mlp_layer_types": ["b"] * 12, "intermediate_size": [1] * 7}
    assert deeper_depths(text, 5, 5) == [12, 5]
    assert deeper_depths({}, 12, 5) == [12, 5]
    assert deeper_depths({}, None, None) == []


def test_index_beyond_the_depth_is_stale():
    text = {"moe_layers": [1, 3, 5], "per_layer_config": {"01": {}, "07": {}}, "mlp_only_layers": []}
    assert stale_indices(text, 4) == {"moe_layers": [5], "per_layer_config": [7]}
    assert stale_indices(text, 8) == {}


def test_prediction_fields_go_and_the_given_config_stays():
    config = {"num_nextn_predict_layers": 1, "mtp_layer_types": ["a"], "hidden_size": 3}
    assert stale_prediction(config) == ["mtp_layer_types", "num_nextn_predict_layers"]
    assert without_prediction(config) == {"num_nextn_predict_layers": 0, "mtp_layer_types": [], "hidden_size": 3}
    assert config["num_nextn_predict_layers"] == 1


def test_config_is_cut_to_the_layers_of_the_files(save_reference, tmp_path):
    folder = save_reference("gemma3_text", tmp_path / "reference")
    names = [name for name in check_files(folder).tensors if ".layers.3." not in name]
    mended, _, model = mend(read_config(folder), "num_hidden_layers", 4, names)
    assert mended.depth == 3
    assert mended.config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert len(model.model.layers) == 3


def test_config_of_another_depth_than_its_lists_is_refused(save_reference, tmp_path):
    folder = save_reference("gemma3_text", tmp_path / "reference")
    with pytest.raises(SurgeryError, match="layer_types"):
        mend(read_config(folder), "num_hidden_layers", 5, list(check_files(folder).tensors))
