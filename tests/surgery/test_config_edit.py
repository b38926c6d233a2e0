import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.surgery.anatomy import Anatomy
from inheritune.surgery.config_edit import edit_config


def edited(config, layers, depth=6, field="num_hidden_layers", full=None, config_path=()):
    anatomy = Anatomy("model.layers", depth, field, config_path, "llama")
    return edit_config(config, full or config, anatomy, layers)


@given(depth=st.integers(4, 40), data=st.data())
def test_per_layer_values_follow_their_layers(depth, data):
    layers = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    config = {
        "num_hidden_layers": depth,
        "layer_types": [f"kind {index}" for index in range(depth)],
        "mlp_only_layers": list(range(0, depth, 3)),
        "per_layer_config": {f"{index:02}": {"id": index} for index in range(0, depth, 2)},
    }
    child, _ = edited(config, layers, depth)
    assert child["num_hidden_layers"] == len(layers)
    assert child["layer_types"] == [f"kind {index}" for index in layers]
    assert [layers[new] for new in child["mlp_only_layers"]] == [index for index in layers if index % 3 == 0]
    assert {layers[int(new)]: value["id"] for new, value in child["per_layer_config"].items()} == {
        index: index for index in layers if index % 2 == 0
    }


def test_reference_config_is_not_changed():
    config = {"num_hidden_layers": 6, "layer_types": list("abcdef"), "nested": {"x": [1]}}
    edited(config, range(2))
    assert config == {"num_hidden_layers": 6, "layer_types": list("abcdef"), "nested": {"x": [1]}}


def test_depth_is_set_under_every_name_that_states_it():
    child, _ = edited({"n_layer": 6, "num_hidden_layers": 6, "num_blocks": 6, "n_head": 6}, range(2), field="n_layer")
    assert child == {"n_layer": 2, "num_hidden_layers": 2, "num_blocks": 2, "n_head": 6}


def test_depth_that_config_json_leaves_to_the_class_is_written_out():
    child, _ = edited({"hidden_size": 8}, range(2))
    assert child["num_hidden_layers"] == 2


def test_list_that_only_transformers_derives_is_written_out_for_the_kept_layers():
    full = {"num_hidden_layers": 6, "layer_types": list("abcdef")}
    child, _ = edited({"num_hidden_layers": 6}, [1, 4], full=full)
    assert child["layer_types"] == ["b", "e"]


def test_composite_config_is_edited_where_its_text_model_is_described():
    config = {"text_config": {"num_hidden_layers": 6}, "vision_config": {"num_hidden_layers": 6}}
    child, _ = edited(config, range(2), config_path=("text_config",))
    assert child == {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 6}}


def test_unknown_list_as_long_as_the_depth_is_cut_and_said():
    child, notes = edited({"num_hidden_layers": 6, "their_scales": [1, 2, 3, 4, 5, 6]}, range(2))
    assert child["their_scales"] == [1, 2]
    assert any("their_scales" in note for note in notes)


def test_unknown_list_of_a_shallow_model_is_left_and_said():
    child, notes = edited({"num_hidden_layers": 2, "time_step_limit": [0.0, 1.0]}, range(1), depth=2)
    assert child["time_step_limit"] == [0.0, 1.0]
    assert any("time_step_limit" in note for note in notes)


def test_prediction_layers_are_switched_off_and_said():
    child, notes = edited({"num_hidden_layers": 6, "num_nextn_predict_layers": 1, "mtp_layer_types": ["a"]}, range(2))
    assert child["num_nextn_predict_layers"] == 0 and child["mtp_layer_types"] == []
    assert len(notes) == 2


@pytest.mark.parametrize(("layers", "dense"), [(range(2), 2), (range(5), 3), ([0, 4], 1), ([4, 5], 0)])
def test_leading_dense_layers_are_those_that_are_kept(layers, dense):
    child, _ = edited({"num_hidden_layers": 6, "first_k_dense_replace": 3}, layers)
    assert child["first_k_dense_replace"] == dense


@pytest.mark.parametrize(("kept", "shared"), [(6, 2), (5, 1), (4, 0), (1, 0)])
def test_layers_that_share_keys_are_still_the_last_ones(kept, shared):
    child, _ = edited({"num_hidden_layers": 6, "num_kv_shared_layers": 2}, range(kept))
    assert child["num_kv_shared_layers"] == shared


def test_indices_that_are_counted_from_one_follow_their_layers():
    child, _ = edited({"num_hidden_layers": 6, "ple_layer_ids": [1, 3, 6]}, [0, 2, 4])
    assert child["ple_layer_ids"] == [1, 2]


def test_list_of_indices_that_only_transformers_derives_is_written_out():
    full = {"num_hidden_layers": 6, "moe_layers": [1, 3, 5]}
    child, _ = edited({"num_hidden_layers": 6}, [0, 3, 5], full=full)
    assert child["moe_layers"] == [1, 2]
