import dataclasses
import errno
import hashlib
import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inheritune.errors import DiskError, RecipeError, SurgeryError
from inheritune.surgery import transplant
from inheritune.surgery.anatomy import anatomy_of_folder, layer_modules
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.cut import plan_cut
from inheritune.surgery.folder import check_files, load_model
from inheritune.surgery.tensor_file import Piece
from inheritune.surgery.transplant import inherit


def reload(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def hidden_after(model, layer, ids):
    kept = []
    hook = layer_modules(model)[layer].register_forward_hook(
        lambda _module, _inputs, output: kept.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    hook.remove()
    return kept[0], logits


def ids():
    return torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(7))


@pytest.mark.reliability("R23")
def test_child_of_two_layers_is_the_reference_up_to_layer_two_bit_for_bit(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers=2)
    assert certificate.kind == "prefix"
    assert certificate.max_abs_difference == 0.0
    child = reload(tmp_path / "child")
    assert anatomy_of_folder(tmp_path / "child").depth == len(layer_modules(child)) == 2
    expected, _ = hidden_after(reload(reference), 1, ids())
    found, _ = hidden_after(child, 1, ids())
    assert torch.equal(expected, found)


@pytest.mark.reliability("R23")
def test_child_with_every_layer_gives_the_reference_logits(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers=4)
    assert certificate.max_abs_difference == 0.0
    _, expected = hidden_after(reload(reference), 3, ids())
    _, found = hidden_after(reload(tmp_path / "child"), 3, ids())
    assert torch.equal(expected, found)


def test_child_writes_the_same_text_with_and_without_the_cache(family, save_reference, tmp_path):
    inherit(save_reference(family, tmp_path / "reference"), tmp_path / "child", layers=2)
    child = reload(tmp_path / "child")
    prompt = ids()[:1, :12]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 256, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    cached = child.generate(prompt, attention_mask=mask, use_cache=True, **settings)
    plain = child.generate(prompt, attention_mask=mask, use_cache=False, **settings)
    assert cached.shape == (1, 20)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("layers", [[0, 2], [1, 3], 3])
def test_every_tensor_of_a_child_has_the_bytes_of_the_source_its_certificate_names(
    family, layers, save_reference, tmp_path
):
    reference = save_reference(family, tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers=layers)
    source, child = load_file(reference / "model.safetensors"), load_file(tmp_path / "child" / "model.safetensors")
    assert set(certificate.tensors) == set(child)
    for name, origin in certificate.tensors.items():
        assert torch.equal(child[name], source[origin.source])
        assert hashlib.sha256(child[name].numpy().tobytes()).hexdigest() == origin.sha256
        assert origin.op == "copy"


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize(("layers", "kept"), [(3, (0, 1, 2)), ([1, 2], (1, 2))])
def test_per_layer_list_of_the_config_follows_the_kept_layers(family, layers, kept, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=layers)
    types = AutoConfig.from_pretrained(reference).layer_types
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(kept)
    assert config["layer_types"] == [types[index] for index in kept]


def test_config_fields_that_have_nothing_to_do_with_layers_stay(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=2)
    before = json.loads((reference / "config.json").read_text())
    after = json.loads((tmp_path / "child" / "config.json").read_text())
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"num_hidden_layers", "n_layer", "layer_types"}


def test_old_gpt2_files_without_prefix_and_with_mask_buffers_give_an_exact_child(save_reference, tmp_path):
    reference = save_reference("gpt2", tmp_path / "reference")
    file = reference / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(file).items()}
    for index in range(4):
        tensors[f"h.{index}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    save_file(tensors, file, metadata={"format": "pt"})
    certificate = inherit(reference, tmp_path / "child", layers=2)
    assert certificate.max_abs_difference == 0.0
    assert "wte.weight" in certificate.tensors and "h.1.attn.c_attn.bias" in certificate.tensors
    assert not any(name.endswith(".attn.bias") for name in certificate.tensors)
    assert any("attn.bias" in note for note in certificate.notes)
    reload(tmp_path / "child")


def test_child_of_a_sharded_reference_equals_the_child_of_a_whole_one(save_reference, tmp_path):
    whole = save_reference("llama", tmp_path / "whole")
    sharded = save_reference("llama", tmp_path / "sharded", max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    one, other = inherit(whole, tmp_path / "a", layers=3), inherit(sharded, tmp_path / "b", layers=3)
    assert one.tensors == other.tensors


def test_child_larger_than_a_shard_is_written_in_shards_that_load(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers=2, max_shard_bytes=20_000)
    assert certificate.max_abs_difference == 0.0
    index = json.loads((tmp_path / "child" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(certificate.tensors)
    assert len(set(index["weight_map"].values())) > 2
    reload(tmp_path / "child")


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_in_the_child_exactly_if_the_reference_file_holds_it(tied, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference", tie_word_embeddings=tied)
    certificate = inherit(reference, tmp_path / "child", layers=2)
    assert ("lm_head.weight" in certificate.tensors) is not tied
    reload(tmp_path / "child")


def test_lossless_dtype_is_proved_by_prefix_equality_and_lossy_dtype_by_bytes(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    half = inherit(reference, tmp_path / "half", layers=2, dtype="bfloat16")
    assert half.kind == "bytes" and half.max_abs_difference is None
    source, child = load_file(reference / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in child.items():
        assert torch.equal(tensor, source[name].to(torch.bfloat16))
    assert AutoConfig.from_pretrained(tmp_path / "half").dtype is torch.bfloat16
    again = inherit(tmp_path / "half", tmp_path / "full", layers=1, dtype=torch.float32)
    assert again.kind == "prefix" and again.max_abs_difference == 0.0


def test_quantity_that_is_no_dtype_is_refused(save_reference, tmp_path):
    with pytest.raises(SurgeryError, match="bfloat16, float16, float32, float64"):
        inherit(save_reference("llama", tmp_path / "reference"), tmp_path / "child", dtype="int8")


def test_tokenizer_and_licence_are_copied_byte_for_byte(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    (reference / "LICENSE").write_text("do what you like\n")
    (reference / "chat_template.jinja").write_text("{{ messages }}")
    (reference / "modeling_own.py").write_text("raise SystemExit")
    certificate = inherit(reference, tmp_path / "child")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", "chat_template.jinja"):
        assert (tmp_path / "child" / name).read_bytes() == (reference / name).read_bytes()
    assert not (tmp_path / "child" / "modeling_own.py").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "child")("ab").input_ids
    assert not any("tokenizer" in note for note in certificate.notes)


def test_missing_tokenizer_is_noted_and_not_refused(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference", with_tokenizer=False)
    certificate = inherit(reference, tmp_path / "child")
    assert any("no tokenizer" in note for note in certificate.notes)


def test_certificate_on_disk_is_the_one_returned_in_the_fixed_format(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    certificate = inherit(reference, tmp_path / "child", layers="half")
    assert Certificate.load(tmp_path / "child") == certificate
    value = json.loads((tmp_path / "child" / "certificate.json").read_text())
    assert value["format"] == 1 and value["kind"] == "prefix" and value["layers"] == [0, 1]
    assert value["reference"] == str(reference) and value["max_abs_difference"] == 0.0
    assert set(value["tensors"]["model.norm.weight"]) == {"from", "op", "sha256"}


def test_unverified_child_says_so(save_reference, tmp_path):
    certificate = inherit(save_reference("llama", tmp_path / "reference"), tmp_path / "child", verify=False)
    assert certificate.kind == "bytes"
    assert any("verify=False" in note for note in certificate.notes)


def test_former_child_is_replaced_whole(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=3, max_shard_bytes=20_000)
    inherit(reference, tmp_path / "child", layers=1)
    assert not list((tmp_path / "child").glob("*.index.json"))
    assert len(layer_modules(reload(tmp_path / "child"))) == 1


def test_folder_that_is_no_former_child_is_left_alone(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SurgeryError, match="not empty"):
        inherit(reference, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_child_cannot_overwrite_its_own_reference(place, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "outer" / "reference")
    (reference / "certificate.json").write_text("{}")
    (tmp_path / "outer" / "certificate.json").write_text("{}")
    with pytest.raises(SurgeryError, match="lie in each other"):
        inherit(reference, reference / place)
    assert (reference / "model.safetensors").exists()


@pytest.mark.parametrize("layers", [0, 5, -1, [], [3, 1], [4], "most"])
def test_selection_that_the_reference_cannot_give_leaves_nothing_behind(layers, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    with pytest.raises(SurgeryError):
        inherit(reference, tmp_path / "child", layers=layers)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


@pytest.mark.parametrize("step", ["write_weights", "copy_companions", "hash_written", "_compare"])
def test_interruption_in_the_middle_leaves_no_child(step, save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")

    def interrupt(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(transplant, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        inherit(reference, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_interruption_keeps_the_former_child(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")
    former = inherit(reference, tmp_path / "child", layers=3)

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(transplant, "_compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inherit(reference, tmp_path / "child", layers=1)
    assert Certificate.load(tmp_path / "child") == former


def test_swapped_layers_are_found_by_the_certificate_and_nothing_is_kept(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")

    def swapped(*arguments):
        cut = plan_cut(*arguments)
        rename = {"0": "1", "1": "0"}
        pieces = []
        for piece in cut.pieces:
            parts = piece.name.split(".")
            if parts[:2] == ["model", "layers"]:
                parts[2] = rename[parts[2]]
            pieces.append(type(piece)(".".join(parts), piece.source, piece.dtype))
        return type(cut)(cut.anatomy, cut.layers, cut.config, tuple(pieces), cut.origins, cut.notes)

    monkeypatch.setattr(transplant, "plan_cut", swapped)
    with pytest.raises(SurgeryError, match="where 0 is required"):
        inherit(reference, tmp_path / "child", layers=2)
    assert not (tmp_path / "child").exists()


def test_bytes_that_read_back_otherwise_are_refused(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")
    write = transplant.write_weights

    def bad_disk(folder, *arguments):
        files = write(folder, *arguments)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
        return files

    monkeypatch.setattr(transplant, "write_weights", bad_disk)
    with pytest.raises(SurgeryError, match="reads back otherwise"):
        inherit(reference, tmp_path / "child", layers=[0, 2])
    assert not (tmp_path / "child").exists()


def test_full_disk_is_refused_before_a_byte_is_written(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")
    monkeypatch.setattr(transplant.shutil, "disk_usage", lambda _place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DiskError, match=r"no space for the child: .* Free some space"):
        inherit(reference, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_target_in_a_place_that_cannot_be_written_is_refused_in_words(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")

    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(transplant.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SurgeryError, match=rf"{tmp_path} cannot be written to \(Read-only"):
        inherit(reference, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_shard_of_no_bytes_is_wrong_usage(save_reference, tmp_path):
    with pytest.raises(RecipeError, match="max_shard_bytes 1 or more"):
        inherit(save_reference("llama", tmp_path / "reference"), tmp_path / "child", max_shard_bytes=0)


def test_certificates_of_equal_cuts_are_equal(save_reference, tmp_path):
    reference = save_reference("qwen3_moe", tmp_path / "reference")
    one, other = (inherit(reference, tmp_path / name, layers=3) for name in ("a", "b"))
    assert one == other
    assert (tmp_path / "a" / "certificate.json").read_bytes() == (tmp_path / "b" / "certificate.json").read_bytes()


def test_child_whose_last_tensor_transformers_would_not_find_is_not_kept(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")

    def without_norm(*arguments):
        cut = plan_cut(*arguments)
        return dataclasses.replace(cut, pieces=tuple(each for each in cut.pieces if each.name != "model.norm.weight"))

    monkeypatch.setattr(transplant, "plan_cut", without_norm)
    for layers in (2, [0, 2]):
        with pytest.raises(SurgeryError, match=r"1 missing \(first: model\.norm\.weight\)"):
            inherit(reference, tmp_path / "child", layers=layers)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_constant_is_certified_as_one(save_reference, tmp_path, monkeypatch):
    reference = save_reference("gpt2", tmp_path / "reference")
    name = "transformer.h.1.attn.c_attn.bias"

    def with_zeros(*arguments):
        cut = plan_cut(*arguments)
        pieces = [
            Piece(name, None, each.dtype, each.shape, must_be_finite=True) if each.name == name else each
            for each in cut.pieces
        ]
        return dataclasses.replace(cut, pieces=tuple(pieces))

    monkeypatch.setattr(transplant, "plan_cut", with_zeros)
    certificate = inherit(reference, tmp_path / "child", layers=[0, 1, 3])
    zeros = load_file(tmp_path / "child" / "model.safetensors")[name]
    assert not zeros.any() and zeros.shape == (96,)
    origin = certificate.tensors[name]
    assert (origin.source, origin.op) == ("0", "constant")
    assert origin.sha256 == hashlib.sha256(zeros.numpy().tobytes()).hexdigest()


def test_config_that_states_more_layers_than_the_files_hold_is_refused(save_reference, tmp_path):
    reference = save_reference("gemma3_text", tmp_path / "reference")
    config = json.loads((reference / "config.json").read_text())
    config["num_hidden_layers"] = 12
    config["layer_types"] = ["full_attention"] * 12
    (reference / "config.json").write_text(json.dumps(config))
    with pytest.raises(SurgeryError, match="no tensor of layer 4"):
        inherit(reference, tmp_path / "child", layers=2)


def test_prediction_layers_behind_the_decoder_are_dropped_and_noted(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    tensors = load_file(reference / "model.safetensors")
    tensors["model.layers.4.eh_proj.weight"] = torch.ones(4, 4)
    tensors["mtp.fc.weight"] = torch.ones(4, 4)
    save_file(tensors, reference / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match="no prediction layers"):
        inherit(reference, tmp_path / "child", layers=[0, 2])
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    certificate = inherit(reference, tmp_path / "child", layers=[0, 2])
    assert any("multi-token" in note for note in certificate.notes)
    assert {name.split(".")[2] for name in certificate.tensors if name.startswith("model.layers.")} == {"0", "1"}
    reload(tmp_path / "child")


@pytest.mark.parametrize("length", [0, 7, 8, 9, 500, -1, -4096])
def test_truncated_weights_are_named_and_nothing_is_written(length, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    file = reference / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(SurgeryError, match=r"model\.safetensors is truncated or damaged"):
        inherit(reference, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_header_length_beyond_the_file_is_refused(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    file = reference / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
    with pytest.raises(SurgeryError, match="header length reads 9223372036854775808"):
        inherit(reference, tmp_path / "child")


def test_reference_that_lacks_a_tensor_is_refused_before_anything_is_written(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    tensors = load_file(reference / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, reference / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=r"1 missing .*model\.norm\.weight"):
        inherit(reference, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    with pytest.raises(SurgeryError, match="not those of its config"):
        load_model(reference)


def gemma(save_reference, name, folder, **more):
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    sizes = {"vocab_size": 260, "vocab_size_per_layer_input": 260, "hidden_size": 32, "hidden_size_per_layer_input": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
    depth = {"num_hidden_layers": 6, "layer_types": types, "max_position_embeddings": 128}
    special = {"pad_token_id": None, "bos_token_id": 256, "eos_token_id": 256}
    return save_reference(name, folder, **sizes, **heads, **depth, **special, **more)


@pytest.mark.parametrize("layers", [2, 5, 6])
def test_gemma_3n_keeps_the_leading_blocks_of_matrices_packed_over_depth(layers, save_reference, tmp_path):
    settings = {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 6, "intermediate_size": [32] * 6}
    reference = gemma(save_reference, "gemma3n_text", tmp_path / "reference", laurel_rank=4, **settings)
    certificate = inherit(reference, tmp_path / "child", layers=layers)
    assert certificate.max_abs_difference == 0.0
    operations = {origin.op for name, origin in certificate.tensors.items() if "per_layer_model_projection" in name}
    assert operations == ({"copy"} if layers == 6 else {"slice"})
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    assert config["num_kv_shared_layers"] == max(0, layers - 4)
    assert len(config["intermediate_size"]) == layers
    reload(tmp_path / "child")


def test_gemma_4_is_cut_at_a_full_attention_layer_and_refused_elsewhere_with_that_depth(save_reference, tmp_path):
    settings = {"num_kv_shared_layers": 0, "intermediate_size": 32, "global_head_dim": 16}
    reference = gemma(save_reference, "gemma4_text", tmp_path / "reference", **settings)
    with pytest.raises(SurgeryError, match=r"layer_types.*nearest depth that can be cut exactly is 3: --layers 3"):
        inherit(reference, tmp_path / "child", layers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    assert inherit(reference, tmp_path / "child", layers=3).max_abs_difference == 0.0


def test_residual_scale_that_depends_on_the_depth_is_kept(save_reference, tmp_path):
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
    more = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "max_position_embeddings": 128}
    reference = save_reference("minicpm3", tmp_path / "reference", **sizes, **heads, **more)
    assert inherit(reference, tmp_path / "child", layers=1).max_abs_difference == 0.0


def test_model_of_parallel_lists_is_refused_by_name(save_reference, tmp_path):
    sizes = {"vocab_size": 260, "emb_dim": 32, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 128}
    reference = save_reference("xlm", tmp_path / "reference", **sizes)
    with pytest.raises(SurgeryError, match=r"'xlm' keeps parallel lists"):
        inherit(reference, tmp_path / "child", layers=2)


def spoil(folder, name, values, dtype=torch.float32):
    """Put values into the first places of a saved tensor; all tensors are saved in ``dtype``."""
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors[name].view(-1)[: len(values)] = torch.tensor(values, dtype=dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors[name].numel()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reference_with_weights_that_are_not_finite_is_refused_by_tensor(dtype, verify, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    name = "model.layers.1.mlp.up_proj.weight"
    count = spoil(folder, name, [float("nan"), float("inf"), 1.0, -float("inf")], dtype)
    with pytest.raises(SurgeryError, match=rf"3 of {count} values of tensor '{name}' .* are NaN or infinite"):
        inherit(folder, tmp_path / "child", layers=2, verify=verify)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_tensor_that_is_not_kept_may_hold_what_it_likes(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    spoil(folder, "model.layers.3.mlp.up_proj.weight", [float("nan")])
    assert inherit(folder, tmp_path / "child", layers=2).max_abs_difference == 0.0


def test_tensor_of_another_place_is_refused_by_the_references_name(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    spoil(folder, "model.layers.3.mlp.up_proj.weight", [float("nan")])
    with pytest.raises(SurgeryError, match=r"tensor 'model\.layers\.3\.mlp\.up_proj\.weight'"):
        inherit(folder, tmp_path / "child", layers=[0, 3])


def test_weight_that_the_dtype_cannot_hold_is_refused_by_tensor(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    spoil(folder, "model.norm.weight", [1e6])
    with pytest.raises(SurgeryError, match=r"1 of 32 values of tensor 'model\.norm\.weight' .* once converted"):
        inherit(folder, tmp_path / "child", layers=2, dtype="float16")
    assert inherit(folder, tmp_path / "child", layers=2, dtype="bfloat16").kind == "bytes"


def test_link_to_nothing_and_a_place_without_a_name(save_reference, tmp_path, monkeypatch):
    reference = save_reference("llama", tmp_path / "reference")
    (tmp_path / "child").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SurgeryError, match="is a link to nothing"):
        inherit(reference, tmp_path / "child", layers=2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inherit(reference, ".", layers=2)
    assert (tmp_path / "here" / "certificate.json").is_file()


@pytest.mark.parametrize("layers", [3, [1, 3]])
def test_tensor_that_a_kept_layer_lacks_is_refused_before_a_byte_is_written(layers, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    tensors = load_file(reference / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, reference / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=rf"{reference} are not those of its config: 1 missing"):
        plan_cut(check_files(reference), layers)
    with pytest.raises(SurgeryError, match="1 missing"):
        inherit(reference, tmp_path / "child", layers=layers, verify=False)


def test_child_as_deep_as_another_list_is_long_is_told_by_the_class_s_own_word(save_reference, tmp_path):
    """Gemma 3n keeps two lists of three modules beside its layers."""
    settings = {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 6, "intermediate_size": [32] * 6}
    reference = gemma(save_reference, "gemma3n_text", tmp_path / "reference", laurel_rank=4, **settings)
    assert inherit(reference, tmp_path / "child", layers=3).max_abs_difference == 0.0


def test_child_that_was_changed_since_is_left_alone(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    inherit(reference, tmp_path / "child", layers=2)
    spoil(tmp_path / "child", "model.norm.weight", [7.0])
    before = (tmp_path / "child" / "model.safetensors").read_bytes()
    with pytest.raises(SurgeryError, match=r"is not what inherit made .* left as it is"):
        inherit(reference, tmp_path / "child", layers=1)
    assert (tmp_path / "child" / "model.safetensors").read_bytes() == before
