"""Every causal-LM type: exact, or refused with a depth that works, never silently wrong."""

import json
import os

import pytest
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures import cutting, nursery
from inheritune.errors import SurgeryError
from inheritune.surgery.transplant import inherit

SAMPLE = (
    # each exception
    *("minicpm3", "gpt_neo", "nemotron_h", "xlstm", "gemma3n_text", "gemma4_text", "deepseek_v3", "gpt_neox_japanese"),
    *("inkling2_text", "zamba", "zamba2", "rwkv", "hrm_text", "blt", "xlm"),
    # layouts: renamed and merged files, other layer lists, lists of kinds and of indices, towers, buffers
    *("mixtral", "bert", "bart", "mpt", "falcon", "jamba", "bamba", "llama4_text", "longcat_flash", "minimax"),
    *("qwen3_next", "lfm2_moe", "gemma3", "zaya", "reformer"),
)
TESTED = nursery.TYPES if os.environ.get("INHERITUNE_FULL") else SAMPLE
DEPTHS = (5, 1, 11) if os.environ.get("INHERITUNE_FULL") else (5,)

NEVER = {"hrm_text", "blt", "xlm", "emu3"}
"""Types that are cut at no depth."""

AT_SOME_DEPTHS = {"gemma4_text", "gemma4_unified_text", "gemma4", "gemma4_unified", "zamba", "rwkv", "olmo_hybrid"}
"""Types that are refused at some depths."""


@pytest.mark.parametrize("model_type", TESTED)
def test_child_of_every_type_is_exact_or_refused_with_a_depth_that_works(model_type, tmp_path):
    for depth, outcome in cutting.judge(model_type, tmp_path, DEPTHS).items():
        assert outcome.kind != "wrong", f"to {depth} layers: {outcome.reason}"
        if outcome.kind == "exact":
            assert outcome.difference == 0.0
            continue
        assert model_type in NEVER | AT_SOME_DEPTHS, outcome.reason
        assert f"{model_type!r}" in outcome.reason
        assert (outcome.nearest is None) == (model_type in NEVER)


def test_every_mapped_type_is_built_or_has_a_reason_why_not():
    assert set(nursery.TYPES) | set(nursery.NOT_BUILDABLE) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(nursery.NOT_BUILDABLE) <= 50
    assert all(len(reason) > 20 for reason in nursery.NOT_BUILDABLE.values())


def test_sample_covers_types_of_the_installed_transformers():
    assert len(SAMPLE) == len(set(SAMPLE)) == 30
    assert set(SAMPLE) <= set(nursery.TYPES)


@pytest.mark.parametrize("model_type", sorted(nursery.NOT_BUILDABLE))
def test_type_that_is_said_not_to_be_buildable_is_not(model_type, tmp_path, full):
    if not full:
        pytest.skip("every type is tried in the long form")
    with pytest.raises(Exception):  # noqa: B017 (each fails in its own way)
        cutting.run(nursery.build(model_type), "")


def test_judge_sees_a_child_that_differs_in_one_weight_and_one_that_has_a_layer_too_many(tmp_path):
    parent = nursery.save("llama", tmp_path / "parent")
    assert cutting.cut(parent, tmp_path / "child", 5).kind == "exact"
    child = cutting.load(tmp_path / "child")
    assert cutting.compare(cutting.load(parent), child, 5) == 0.0
    child.model.norm.weight.data[3] += 1e-3
    assert cutting.compare(cutting.load(parent), child, 5) > 0.0
    with pytest.raises(ValueError, match="has 5 layers, not 4"):
        cutting.compare(cutting.load(parent), child, 4)


def test_bias_that_only_a_last_layer_has_is_a_constant_of_zeros_in_the_certificate(tmp_path):
    parent = nursery.save("gpt_neox_japanese", tmp_path / "parent")
    certificate = inherit(parent, tmp_path / "child", layers=5)
    name = "gpt_neox_japanese.layers.4.attention.dense_bias"
    assert certificate.kind == "prefix" and certificate.max_abs_difference == 0.0
    assert certificate.tensors[name].op == "constant" and certificate.tensors[name].source == "0"
    assert not load_file(tmp_path / "child" / "model.safetensors")[name].any()


@pytest.mark.parametrize(
    ("model_type", "said"), [("beam", "attn_residual_add_idx"), ("diffllama", "lambda_init"), ("rwkv", "by index")]
)
def test_selection_that_moves_layers_which_compute_with_their_index_says_so(model_type, said, tmp_path):
    outcome = cutting.judge_moved(nursery.save(model_type, tmp_path / "parent"), tmp_path / "child")
    assert outcome.kind == "exact" and outcome.difference
    assert any(said in note and "do not compute what they did" in note for note in outcome.notes)


@pytest.mark.parametrize("model_type", ["jamba", "zamba2", "gemma3n_text"])
def test_selection_that_no_config_can_state_is_refused(model_type, tmp_path):
    outcome = cutting.judge_moved(nursery.save(model_type, tmp_path / "parent"), tmp_path / "child")
    assert outcome.kind == "refused" and "refix" in outcome.reason


def test_period_of_sparse_layers_is_written_out_for_moved_layers(tmp_path):
    parent = nursery.save("qwen3_moe", tmp_path / "parent", decoder_sparse_step=2)
    outcome = cutting.judge_moved(parent, tmp_path / "child")
    assert (outcome.kind, outcome.difference) == ("exact", 0.0)
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    assert config["decoder_sparse_step"] == 1 and config["mlp_only_layers"] == [0, 1, 2]


def test_layer_that_does_not_run_on_text_alone_is_said(tmp_path):
    """Mllama's layers that look at images are left out where there is none."""
    certificate = inherit(nursery.save("mllama", tmp_path / "parent"), tmp_path / "child", layers=5)
    assert (certificate.kind, certificate.max_abs_difference) == ("prefix", 0.0)
    assert any("do not run on text alone" in note and "[3]" in note for note in certificate.notes)


def test_config_that_states_no_end_of_positions_is_proved(tmp_path):
    certificate = inherit(nursery.save("xlnet", tmp_path / "parent"), tmp_path / "child", layers=5)
    assert (certificate.kind, certificate.max_abs_difference) == ("prefix", 0.0)


@pytest.mark.parametrize("model_type", nursery.TYPES_OF_LONG_FORM)
def test_of_every_type_the_child_is_proved_or_refused(model_type, tmp_path):
    with nursery.silence():
        parent = nursery.save(model_type, tmp_path / "parent")
        try:
            certificate = inherit(parent, tmp_path / "child", layers=5)
        except SurgeryError:
            assert model_type in NEVER | AT_SOME_DEPTHS
        else:
            assert (certificate.kind, certificate.max_abs_difference) == ("prefix", 0.0)
