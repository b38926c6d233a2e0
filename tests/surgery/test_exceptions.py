import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery import exceptions
from inheritune.surgery.exceptions import (
    CONFIG_EXCEPTIONS,
    HARMLESS_SETTINGS,
    LEAST_DEPTHS,
    OBSTACLES,
    is_of_dropped_hybrid,
    is_zero_in_child,
    layer_beside,
    packed_over_depth,
)


def changed(text, layers, depth=6):
    fields, notes = {}, []
    for exception in CONFIG_EXCEPTIONS:
        new, words = exception.edit(text, layers, depth)
        assert not set(fields) & set(new), "two exceptions are about the same field"
        fields |= new
        notes += words
    return fields, notes


def test_every_exception_has_a_reason_and_a_source():
    assert len({exception.reason for exception in CONFIG_EXCEPTIONS}) == len(CONFIG_EXCEPTIONS)
    for each in (*CONFIG_EXCEPTIONS, *OBSTACLES.values()):
        assert len(each.reason) > 20 and (".py" in each.source or "layers.DEPTH" in each.source)
    assert all(len(reason) > 20 for reason in HARMLESS_SETTINGS.values())
    assert set(LEAST_DEPTHS) <= set(OBSTACLES)


def test_config_without_any_of_the_fields_is_left_alone():
    assert changed({"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 8}, range(2)) == ({}, [])


def test_prediction_layers_are_switched_off_and_said():
    fields, notes = changed({"num_nextn_predict_layers": 1, "mtp_layer_types": ["a"], "num_mtp_layers": 0}, range(2))
    assert fields == {"num_nextn_predict_layers": 0, "mtp_layer_types": []}
    assert len(notes) == 2


@given(depth=st.integers(2, 80), data=st.data())
def test_residual_scale_by_depth_stays_what_it_was(depth, data):
    kept = data.draw(st.integers(1, depth))
    fields, _ = changed({"model_type": "minicpm3", "scale_depth": 1.4}, range(kept), depth)
    assert math.isclose(fields["scale_depth"] / math.sqrt(kept), 1.4 / math.sqrt(depth), rel_tol=1e-15)


def test_residual_scale_that_the_class_makes_of_the_depth_is_left_to_it():
    assert changed({"model_type": "minicpm3", "scale_depth": None}, range(2)) == ({}, [])


@pytest.mark.parametrize("layers", [range(3), [1, 2, 5]])
def test_patterns_that_multiply_out_to_the_depth_are_written_out(layers):
    fields, _ = changed({"model_type": "gpt_neo", "attention_types": [[["global", "local"], 3]]}, layers)
    assert fields["attention_types"] == [[[["global", "local"][index % 2] for index in layers], 1]]


def test_pattern_in_letters_follows_the_layers_and_another_text_stays():
    assert changed({"hybrid_override_pattern": "M-M*-E"}, [0, 3, 5])[0] == {"hybrid_override_pattern": "M*E"}
    assert changed({"hybrid_override_pattern": "M-"}, [0, 3, 5])[0] == {}


def test_second_depth_field_is_the_depth():
    assert changed({"num_blocks": 6}, range(2))[0] == {"num_blocks": 2}
    assert changed({"num_blocks": 4}, range(2))[0] == {}


@pytest.mark.parametrize(("kept", "shared"), [(6, 2), (5, 1), (4, 0), (1, 0)])
def test_layers_that_share_keys_are_still_the_last_ones(kept, shared):
    assert changed({"num_kv_shared_layers": 2}, range(kept))[0] == {"num_kv_shared_layers": shared}


def test_layers_that_share_keys_by_position_cannot_be_moved():
    with pytest.raises(SurgeryError, match="Choose a prefix"):
        changed({"num_kv_shared_layers": 2}, [0, 2])


def test_layer_whose_key_source_is_dropped_is_refused():
    text = {"kv_source_layers": [None, None, 1, None, 3, 3]}
    assert changed(text, [0, 1, 2])[0] == {"kv_source_layers": [None, None, 1]}
    assert changed(text, [3, 5])[0] == {"kv_source_layers": [None, 0]}
    with pytest.raises(SurgeryError, match="Keep layer 3 too"):
        changed(text, [0, 4])


@pytest.mark.parametrize("name", ["first_k_dense_replace", "num_dense_layers"])
@pytest.mark.parametrize(("layers", "dense"), [(range(2), 2), (range(5), 3), ([0, 4], 1), ([4, 5], 0)])
def test_leading_dense_layers_are_those_that_are_kept(name, layers, dense):
    fields, notes = changed({name: 3}, layers)
    assert fields == {name: dense}
    assert bool(notes) == (dense == len(layers))


def test_sparse_step_is_kept_for_a_prefix_and_written_out_for_moved_layers():
    text = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert changed(text, range(4)) == ({}, [])
    fields, notes = changed(text, [0, 1, 3, 5])  # of these, 1 and 5 have experts; 3 is listed as dense
    assert fields == {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}
    assert len(notes) == 1


def test_rescaling_by_index_is_said_of_moved_layers_alone():
    assert changed({"rescale_every": 6}, range(3)) == ({}, [])
    fields, notes = changed({"rescale_every": 6}, [0, 2])
    assert fields == {} and "do not compute what they did" in notes[0]


def test_only_matrices_packed_over_depth_are_cut_and_along_their_axis():
    assert packed_over_depth("model.embed_tokens_per_layer.weight", (100, 48), 12, 5) == (100, 20)
    assert packed_over_depth("model.per_layer_model_projection.weight", (48, 16), 12, 5) == (20, 16)
    assert packed_over_depth("model.embed_tokens.weight", (100, 48), 12, 5) is None
    assert packed_over_depth("model.per_layer_projection_norm.weight", (48,), 12, 5) is None
    assert packed_over_depth("model.embed_tokens_per_layer.weight", (100, 50), 12, 5) is None


def test_bias_of_zeros_is_that_of_one_type():
    name = "gpt_neox_japanese.layers.4.attention.dense_bias"
    assert is_zero_in_child("gpt_neox_japanese", name)
    assert not is_zero_in_child("gpt_neox", name)
    assert not is_zero_in_child("gpt_neox_japanese", "gpt_neox_japanese.layers.4.attention.dense.weight")


def test_adapters_of_dropped_hybrid_layers_go():
    text = {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
    stem = "model.layers.1.shared_transformer.feed_forward.gate_up_proj"
    assert not is_of_dropped_hybrid(f"{stem}_adapter_list.1.0.weight", text)
    assert is_of_dropped_hybrid(f"{stem}_adapter_list.2.0.weight", text)
    assert not is_of_dropped_hybrid(f"{stem}.weight", text)
    assert not is_of_dropped_hybrid(f"{stem}_adapter_list.2.0.weight", {})


def test_queries_beside_the_layers_belong_to_theirs():
    assert layer_beside("model.llm.attn_res.attn_queries.4") == 5
    assert layer_beside("model.llm.attn_res.mlp_queries.4") == 4
    assert layer_beside("model.llm.attn_res.output_query") is None
    assert layer_beside("model.layers.4.attn_res.query") is None


def test_manual_names_every_exception_with_its_reason_and_its_source():
    manual = (Path(__file__).parents[2] / "docs" / "surgery.md").read_text(encoding="utf-8")
    told = [*exceptions.CONFIG_EXCEPTIONS, *exceptions.OBSTACLES.values()]
    assert not [each.reason for each in told if each.reason not in manual or each.source not in manual]
