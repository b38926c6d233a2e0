import dataclasses
import json
import struct

import pytest
from safetensors.torch import load_file

from inheritune.errors import SurgeryError
from inheritune.surgery.preview import preview
from inheritune.surgery.transplant import inherit


def sizes(folder):
    """Bytes of every file of a child but its certificate."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "certificate.json"}


def check_prediction(reference, child, settings):
    foreseen = preview(reference, child, **settings)
    assert not child.exists()
    certificate = inherit(reference, child, **settings)
    assert foreseen.files == sizes(child)
    assert foreseen.write_bytes == sum(sizes(child).values())
    assert {name: (each.source, each.op) for name, each in foreseen.tensors.items()} == {
        name: (origin.source, origin.op) for name, origin in certificate.tensors.items()
    }
    assert foreseen.layers == certificate.layers
    assert ("prefix" if foreseen.obstacle is None else "bytes") == certificate.kind
    assert set(foreseen.notes) <= set(certificate.notes)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 2},
        {"layers": "drop 1", "dtype": "bfloat16"},
        {"layers": 3, "max_shard_bytes": 20_000},
        {"layers": "every-2", "parts": "mlp", "seed": 4},
        {"layers": 2, "verify": False},
    ],
    ids=str,
)
def test_predicted_bytes_of_every_file_are_the_written_ones(settings, save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference", max_shard_size="50KB")
    check_prediction(reference, tmp_path / "child", settings)


def test_predicted_bytes_are_the_written_ones_for_shards_of_another_dtype_with_initial_tensors(
    family, save_reference, tmp_path
):
    reference = save_reference(family, tmp_path / "reference")
    settings = {"layers": 3, "parts": "published", "dtype": "float16", "max_shard_bytes": 30_000}
    check_prediction(reference, tmp_path / "child", settings)


def test_what_is_kept_and_what_is_dropped_are_the_whole_reference(family, save_reference, tmp_path):
    reference = save_reference(family, tmp_path / "reference")
    stored = {name: tensor.nbytes for name, tensor in load_file(reference / "model.safetensors").items()}
    foreseen = preview(reference, layers="0-1,3")
    kept = {each.source: each.num_bytes for each in foreseen.tensors.values()}
    assert {**kept, **foreseen.dropped} == stored
    assert not set(kept) & set(foreseen.dropped)
    assert foreseen.read_bytes == sum(kept.values())


def test_parameters_are_those_of_the_models_with_a_tied_head_counted_once(
    family, build_model, save_reference, tmp_path
):
    foreseen = preview(save_reference(family, tmp_path / "reference"), layers=1)
    for depth, found in ((4, foreseen.parameters_before), (1, foreseen.parameters_after)):
        model = build_model(family, num_hidden_layers=depth)
        assert found == model.num_parameters()


def open_llama(folder):
    """OpenLLaMA-3B's config and headers in float16; its 6.9 GB of weights are a hole in the file."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 3200,
        "intermediate_size": 8640, "num_hidden_layers": 26, "num_attention_heads": 32, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "torch_dtype": "float16",
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [32000, 3200], "lm_head.weight": [32000, 3200], "model.norm.weight": [3200]}
    for index in range(26):
        for word in "qkvo":
            shapes[f"model.layers.{index}.self_attn.{word}_proj.weight"] = [3200, 3200]
        for word in ("gate", "up"):
            shapes[f"model.layers.{index}.mlp.{word}_proj.weight"] = [8640, 3200]
        shapes[f"model.layers.{index}.mlp.down_proj.weight"] = [3200, 8640]
        for word in ("input", "post_attention"):
            shapes[f"model.layers.{index}.{word}_layernorm.weight"] = [3200]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    return folder


def test_the_papers_child_of_openllama_has_1816_million_parameters(tmp_path):
    foreseen = preview(open_llama(tmp_path / "open_llama_3b"), layers=13)
    layer = 4 * 3200 * 3200 + 3 * 3200 * 8640 + 2 * 3200
    assert foreseen.parameters_before == 2 * 32000 * 3200 + 26 * layer + 3200 == 3_426_473_600
    assert foreseen.parameters_after == 2 * 32000 * 3200 + 13 * layer + 3200 == 1_815_638_400
    assert foreseen.read_bytes == 2 * 1_815_638_400
    assert sum(foreseen.dropped.values()) == 2 * 13 * layer
    assert foreseen.config_changes == {"num_hidden_layers": (26, 13)}
    shown = foreseen.text()
    assert "3,426,473,600 (3.43B) -> 1,815,638,400 (1.82B)" in shown
    assert "num_hidden_layers: 26 -> 13" in shown


def test_changes_of_the_config_name_the_field_and_both_values(save_reference, tmp_path):
    foreseen = preview(save_reference("gemma3_text", tmp_path / "reference"), layers="drop 0", dtype="bfloat16")
    assert foreseen.config_changes["num_hidden_layers"] == (4, 3)
    assert foreseen.config_changes["layer_types"][1] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert foreseen.config_changes["dtype"] == ("float32", "bfloat16")
    assert set(foreseen.config_changes) == {"num_hidden_layers", "layer_types", "dtype"}


def test_json_is_plain_and_complete(save_reference, tmp_path):
    foreseen = preview(save_reference("llama", tmp_path / "reference"), layers="0,-1", parts="mlp", seed=3)
    value = json.loads(json.dumps(foreseen.to_json(), allow_nan=False))
    assert value["layers"] == [{"child": 0, "reference": 0}, {"child": 1, "reference": 3}]
    assert value["kind"] == "bytes" and "only parts are inherited" in value["obstacle"]
    assert value["tensors"]["model.layers.1.self_attn.q_proj.weight"]["op"] == "init"
    assert value["tensors"]["model.layers.1.mlp.up_proj.weight"]["from"] == "model.layers.3.mlp.up_proj.weight"
    assert value["write_bytes"] == sum(value["files"].values())
    assert any("seed 3" in note for note in value["notes"])


def test_memory_for_the_proof_is_asked_for_only_where_there_is_one(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    with_proof = preview(reference, layers=2)
    assert with_proof.proof_memory_bytes is not None
    assert 0 < with_proof.proof_memory_bytes < 4 * with_proof.parameters_after  # one layer is in memory at a time
    assert preview(reference, layers=2, verify=False).proof_memory_bytes is None
    assert "no proof" not in with_proof.text() and "for the proof" in with_proof.text()


def test_what_inherit_refuses_the_dry_run_refuses_with_the_same_words(save_reference, tmp_path):
    reference = save_reference("llama", tmp_path / "reference")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    refusals = [("taken", {}), ("child", {"layers": 9}), ("reference/inside", {}), ("child", {"dtype": "int8"})]
    for out, settings in refusals:
        said = []
        for function in (preview, inherit):
            with pytest.raises(SurgeryError) as refused:
                function(reference, tmp_path / out, **settings)
            said.append(str(refused.value))
        assert said[0] == said[1]


def test_a_preview_cannot_be_changed(save_reference, tmp_path):
    foreseen = preview(save_reference("llama", tmp_path / "reference"), layers=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        foreseen.depth = 3
