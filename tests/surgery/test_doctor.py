import json
import struct

import pytest
import torch
from architectures.nursery import TYPES_OF_LONG_FORM, save, silence
from passthrough import KINDS, make
from safetensors.torch import load_file, save_file
from test_layouts import LAYOUTS, parameters, write

from inheritune.errors import SurgeryError
from inheritune.surgery import doctor
from inheritune.surgery.doctor import count_numbered, diagnose, judge_depth, judge_training
from inheritune.surgery.mending import Held
from inheritune.surgery.transplant import inherit

FOREIGN_CLASSES = ("emu3",)
"""Types whose files AutoModelForCausalLM cannot load: it looks for the text model's tensors under other names."""


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def rewrite(folder, change):
    """The folder's one weight file, with its tensors changed by ``change``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def faults(folder, **settings):
    return {(finding.kind, finding.where) for finding in diagnose(folder, **settings).faults}


def warnings(folder):
    return {(each.kind, each.where) for each in diagnose(folder).findings if each.severity == "warning"}


def check_wrong_folders(parent, folder, depth):
    """Every kind of wrong folder of this parent is found; gives how many there are."""
    num_made = 0
    for kind, (_, severity) in KINDS.items():
        if make(kind, parent, folder / kind, depth):
            found = diagnose(folder / kind)
            assert any(finding.severity == severity for finding in found.findings), (kind, found)
            assert found.is_sound is (severity != "fault"), kind
            num_made += 1
    return num_made


def test_reference_and_its_child_are_sound(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=2, verify=False)
    for folder, depth in ((reference, 4), (tmp_path / "child", 2)):
        found = diagnose(folder)
        assert found.is_sound and found.stated_depth == found.held_depth == depth
        assert not [each for each in found.findings if each.kind != "training"]


def test_every_wrong_folder_of_a_passthrough_is_found(family, save_reference, tmp_path):
    assert check_wrong_folders(save_reference(family, tmp_path / "reference"), tmp_path, 2) >= 5


@pytest.mark.parametrize("model_type", TYPES_OF_LONG_FORM)
def test_of_every_type_wrong_folders_are_found_and_right_ones_are_sound(model_type, tmp_path):
    parent = save(model_type, tmp_path / "parent")
    with silence():
        assert diagnose(parent).is_sound is (model_type not in FOREIGN_CLASSES)
        try:
            inherit(parent, tmp_path / "child", layers=5, verify=False)
        except SurgeryError:
            pass  # whether it should be cut is another test's
        else:
            assert diagnose(tmp_path / "child").is_sound
        if model_type not in FOREIGN_CLASSES:
            assert check_wrong_folders(parent, tmp_path, 5) >= 2


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_published_layout_is_sound(layout, build_model, save_reference, tmp_path):
    family, settings, publish = LAYOUTS[layout]
    folder = save_reference(family, tmp_path / "reference", **settings)
    write(publish(parameters(build_model(family, **settings))), folder / "model.safetensors")
    found = diagnose(folder)
    assert found.is_sound and found.held_depth == 4
    assert not [each for each in found.findings if each.kind not in ("training", "unread", "layout", "tied head")]


def test_towers_of_a_model_that_sees_are_left_unread_and_layers_too_many_are_not(tmp_path):
    with silence():
        parent = save("llama4", tmp_path / "parent")
        found = diagnose(parent)
        assert found.is_sound and any(finding.kind == "unread" for finding in found.findings)
        text = json.loads((parent / "config.json").read_text())["text_config"]
        edit(parent, text_config=text | {"num_hidden_layers": 11})
        assert not diagnose(parent).is_sound


def test_depth_that_the_files_do_not_hold_is_said_with_both_numbers(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    make("depth unchanged", reference, tmp_path / "wrong", 2)
    (finding,) = diagnose(tmp_path / "wrong").faults
    assert finding.where == "config.json: num_hidden_layers" and finding.is_mendable
    assert "says 4 layers" in finding.what and "hold 2" in finding.what and "2 layers with random" in finding.what


def test_files_of_more_layers_than_the_config_states_are_a_fault(save_reference, tmp_path):
    folder = edit(save_reference("llama", tmp_path / "reference"), num_hidden_layers=3)
    (finding,) = diagnose(folder).faults
    assert finding.kind == "depth" and "drop the last 1" in finding.what


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3_text"])
def test_list_of_another_length_is_named_where_transformers_refuses_the_config(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    make("lists unchanged", reference, tmp_path / "wrong", 2)
    found = diagnose(tmp_path / "wrong")
    named = {finding.where: finding.what for finding in found.faults}
    assert "has 4 entries" in named["config.json: layer_types"] and "states 2" in named["config.json: layer_types"]
    assert "refused by transformers" in named["config.json"]
    assert found.held_depth == 2


def test_hole_between_layers_is_named(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")

    def drop(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    rewrite(folder, drop)
    assert ("layers", "model.layers.1.*") in faults(folder)


def test_many_things_wrong_are_all_named_at_once(save_reference, tmp_path):
    folder = save_reference("qwen3", tmp_path / "reference", max_shard_size="20KB")
    edit(folder, layer_types=["full_attention"] * 3, dtype="float16", attention_dropout=0.1, eos_token_id=999)
    shards = sorted(folder.glob("model-*"))
    shards[0].write_bytes(b"damaged")
    shards[1].unlink()
    (folder / "tokenizer.json").write_text("{")
    found = diagnose(folder)
    assert {"per-layer list", "refused config", "shard", "tokenizer"} <= {each.kind for each in found.faults}
    assert {"dtype", "training"} <= {each.kind for each in found.findings if each.severity == "warning"}


def test_faults_come_first(save_reference, tmp_path):
    folder = edit(save_reference("llama", tmp_path / "reference"), num_hidden_layers=3, attention_dropout=0.1)
    (folder / "training_args.bin").write_bytes(b"")
    assert [each.severity for each in diagnose(folder).findings] == ["fault", "warning", "note"]


@pytest.mark.parametrize(("change", "kind"), [
    (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "missing"),
    (lambda tensors: tensors.update({"model.layers.1.mlp.bias": torch.ones(3)}), "extra"),
    (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "shape"),
])  # fmt: skip
def test_tensor_that_is_missing_extra_or_misshapen_is_named(change, kind, save_reference, tmp_path):
    ((found, where),) = faults(rewrite(save_reference("llama", tmp_path / "reference"), change))
    assert found == kind and where.startswith("model.")


def test_missing_head_says_how_to_tie_it(save_reference, tmp_path):
    folder = rewrite(save_reference("llama", tmp_path / "reference"), lambda tensors: tensors.pop("lm_head.weight"))
    (finding,) = diagnose(folder).faults
    assert finding.where == "lm_head.weight" and "tie_word_embeddings" in finding.next


def test_tied_head_that_is_written_out_is_harmless_only_with_the_same_bytes(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference", tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert diagnose(folder).is_sound and ("tied head", "lm_head.weight") in warnings(folder)
    rewrite(folder, lambda tensors: tensors["lm_head.weight"][-1, -1].add_(1))
    assert faults(folder) == {("untied head", "lm_head.weight")}


def test_field_of_prediction_layers_is_stale_only_where_the_files_hold_none(save_reference, build_model, tmp_path):
    family, settings, publish = LAYOUTS["deepseek_v3, prediction layer"]
    folder = save_reference(family, tmp_path / "reference", **settings)
    assert ("mtp", "config.json: num_nextn_predict_layers") in warnings(folder)
    write(publish(parameters(build_model(family, **settings))), folder / "model.safetensors")
    assert "mtp" not in {kind for kind, _ in warnings(folder)}


def test_index_list_of_a_deeper_model_is_named(save_reference, tmp_path):
    folder = edit(save_reference("qwen3_moe", tmp_path / "reference"), mlp_only_layers=[9])
    assert ("layer index", "config.json: mlp_only_layers") in warnings(folder)


def test_not_a_number_is_seen_when_weights_are_read_and_only_then(save_reference, tmp_path, monkeypatch):
    folder = save_reference("llama", tmp_path / "reference")
    rewrite(folder, lambda tensors: tensors["model.norm.weight"][3:5].fill_(float("nan")))
    (finding,) = diagnose(folder, values=True).faults
    assert finding.where == "model.safetensors: model.norm.weight" and "2 of 32 values" in finding.what
    monkeypatch.setattr(doctor, "chunks", lambda _entry: pytest.fail("a weight was read"))
    assert diagnose(folder).is_sound


def test_dtype_that_loading_would_change_is_a_warning(save_reference, tmp_path):
    folder = edit(save_reference("llama", tmp_path / "reference"), dtype="bfloat16")
    assert ("dtype", "config.json: dtype") in warnings(folder)


@pytest.mark.parametrize(("fields", "said"), [
    ({"attention_dropout": 0.1, "use_cache": True, "dropout": 0}, ["training drops values at random"]),
    ({"layerdrop": 0.2, "dropout": 0.1}, ["whole layers are skipped", "training drops values at random"]),
    ({"summary_first_dropout": 0.1, "classifier_dropout": 0.1, "dropout": "0.1", "hidden_dropout": None}, []),
])  # fmt: skip
def test_what_makes_training_draw_at_random_is_a_warning(fields, said):
    found = judge_training(fields)
    assert len(found) == len(said)
    assert all(finding.what.startswith(words) for finding, words in zip(found, said, strict=True))


def test_tokenizer_is_missed_and_one_of_another_model_is_a_fault(save_reference, tmp_path):
    bare = save_reference("llama", tmp_path / "bare", with_tokenizer=False)
    assert ("tokenizer", "tokenizer.json") in warnings(bare)
    small = save_reference("llama", tmp_path / "small", vocab_size=200, bos_token_id=1, eos_token_id=1)
    assert faults(small) == {("tokenizer", "tokenizer.json")}


def test_special_token_of_generation_that_the_model_lacks_is_named(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 300]}))
    assert ("token id", "generation_config.json: eos_token_id") in warnings(folder)


@pytest.mark.parametrize("config", [
    {"model_type": "never_seen", "num_hidden_layers": 12},
    {"model_type": "never_seen", "num_hidden_layers": 12, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}},
])  # fmt: skip
def test_of_an_unknown_type_files_and_depth_are_judged_and_no_code_is_run(config, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    found = diagnose(folder)
    assert {finding.kind for finding in found.faults} == {"model type"}
    assert ("depth", "config.json: num_hidden_layers") in warnings(folder)
    assert (found.stated_depth, found.held_depth) == (12, 4)


@pytest.mark.parametrize("changes", [
    {"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**30}, {"num_hidden_layers": -1},
    {"num_hidden_layers": "4"}, {"num_hidden_layers": None}, {"hidden_size": -32}, {"hidden_size": "wide"},
    {"vocab_size": 2**62}, {"num_attention_heads": 0}, {"rope_parameters": []}, {"text_config": {}},
    {"text_config": {"model_type": ["llama"]}}, {"dtype": "float99"}, {"dtype": 3}, {"pad_token_id": 10**9},
    {"architectures": 3}, {"layer_types": 3}, {"model_type": ""}, {"model_type": None}, {"mlp_only_layers": ["x", {}]},
])  # fmt: skip
@pytest.mark.parametrize("family", ["qwen3"])
def test_config_of_nonsense_is_a_diagnosis_and_no_crash(family, changes, save_reference, tmp_path):
    folder = edit(save_reference(family, tmp_path / "reference"), **changes)
    found = diagnose(folder)
    harmless = {"dtype", "architectures", "mlp_only_layers", "layer_types", "rope_parameters"}
    assert found.faults or set(changes) & harmless
    assert json.loads(json.dumps(found.to_json()))["is_sound"] is found.is_sound


def test_empty_tensor_of_absurd_shape_is_a_fault_and_no_crash(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["model.extra"] = {"dtype": "F32", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}
    new = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])
    assert faults(folder) == {("tensors", "model.safetensors")}


def test_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(SurgeryError, match="there is no folder"):
        diagnose(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="is a file"):
        diagnose(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert {kind for kind, _ in faults(tmp_path / "empty")} == {"config", "weights"}


def test_quantised_model_is_judged_by_its_layers(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    make("depth unchanged", reference, tmp_path / "wrong", 2)
    for folder in (reference, tmp_path / "wrong"):
        edit(folder, quantization_config={"quant_method": "fp8"})
        rewrite(folder, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}))
    assert diagnose(reference).is_sound
    assert {kind for kind, _ in faults(tmp_path / "wrong")} == {"depth"}


@pytest.mark.parametrize(("held", "said"), [
    (Held(12, ()), []), (Held(12, (12,)), []), (Held(5, ()), ["fill 7 layers"]), (Held(5, (12,)), ["fill 7 layers"]),
    (Held(13, ()), ["drop the last 1"]), (Held(0, ()), ["hold none"]), (Held(5, (7,)), ["layer 5 is not"]),
    (Held(0, (1,)), ["layer 0 is not there"]),
])  # fmt: skip
def test_depths_are_told_apart(held, said):
    findings = judge_depth(held, 12, "config.json: n_layer", "h.")
    assert [words for finding, words in zip(findings, said, strict=True) if words in finding.what] == said


def test_numbered_modules_are_counted_without_a_class():
    names = ["h.0.a", "h.0.b", "h.1.a", "h.1.b", "vision.layers.0.a", "vision.layers.1.a", "vision.layers.2.a", "norm"]
    assert count_numbered([*names, "h.3.a"]) == ("h.", 2)
    assert count_numbered(["norm.weight"]) == ("", 0)
