from dataclasses import replace

import pytest
import torch
from transformers import Qwen3MoeForCausalLM

from inheritune.surgery.folder import build_config, build_on_meta, check_files, read_config
from inheritune.surgery.loading import compare


@pytest.fixture
def reference(save_reference, tmp_path):
    return save_reference("qwen3_moe", tmp_path / "reference")


def loaded(folder, tensors):
    return compare(build_on_meta(build_config(read_config(folder))), tensors)


def test_saved_model_is_exact(family, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    assert loaded(folder, check_files(folder).tensors).is_exact


def test_account_is_that_of_transformers_own_load(reference):
    """On files with one tensor lost, one too many and one of another shape."""
    tensors = dict(check_files(reference).tensors)
    del tensors["model.layers.1.mlp.gate.weight"]
    tensors["model.layers.9.mlp.gate.weight"] = replace(
        tensors["model.layers.0.mlp.gate.weight"], name="model.layers.9.mlp.gate.weight"
    )
    tensors["model.norm.weight"] = tensors["model.layers.0.self_attn.q_norm.weight"]
    account = loaded(reference, tensors)
    state = {name: torch.zeros(entry.shape) for name, entry in tensors.items()}
    _, info = Qwen3MoeForCausalLM.from_pretrained(
        None,
        config=build_config(read_config(reference)),
        state_dict=state,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    assert set(account.missing) == set(info["missing_keys"]) == {"model.layers.1.mlp.gate.weight"}
    assert set(account.unexpected) == set(info["unexpected_keys"]) == {"model.layers.9.mlp.gate.weight"}
    assert account.misshapen == {name: (tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]}
    assert account.misshapen == {"model.norm.weight": ((8,), (32,))}


def test_lost_expert_is_seen_in_the_fused_tensor(reference):
    tensors = dict(check_files(reference).tensors)
    del tensors["model.layers.2.mlp.experts.3.down_proj.weight"]
    account = loaded(reference, tensors)
    assert list(account.misshapen) == ["model.layers.2.mlp.experts.down_proj"]
    del tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
    account = loaded(reference, tensors)
    assert "model.layers.2.mlp.experts.gate_up_proj" in {*account.failed, *account.misshapen, *account.missing}


def test_tied_head_is_not_missing_and_is_named_where_it_is_there_twice(save_reference, tmp_path):
    folder = save_reference("gpt2", tmp_path / "reference")
    tensors = {name.removeprefix("transformer."): entry for name, entry in check_files(folder).tensors.items()}
    assert loaded(folder, tensors).is_exact and not loaded(folder, tensors).tied_twice
    tensors["lm_head.weight"] = tensors["wte.weight"]
    account = loaded(folder, tensors)
    assert account.is_exact and account.tied_twice == (("lm_head.weight", "wte.weight"),)


def test_model_without_its_embedding_lacks_it_and_its_tied_head(save_reference, tmp_path):
    folder = save_reference("gpt2", tmp_path / "reference")
    tensors = {name: entry for name, entry in check_files(folder).tensors.items() if "wte" not in name}
    assert set(loaded(folder, tensors).missing) == {"transformer.wte.weight", "lm_head.weight"}


def test_names_of_the_class_are_told_from_those_of_published_files(reference):
    account = loaded(reference, check_files(reference).tensors)
    assert not account.unpublished
    tensors = {name: entry for name, entry in check_files(reference).tensors.items() if ".experts." not in name}
    for layer in range(4):
        for name, shape in (("gate_up_proj", (4, 32, 32)), ("down_proj", (4, 32, 16))):
            tensors[f"model.layers.{layer}.mlp.experts.{name}"] = replace(tensors["model.norm.weight"], shape=shape)
    account = loaded(reference, tensors)
    assert account.is_exact and len(account.unpublished) == 8


def test_no_memory_is_taken_for_tensors_that_are_missing(reference):
    model = build_on_meta(build_config(read_config(reference)))
    compare(model, {})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
