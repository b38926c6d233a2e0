import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.errors import SurgeryError
from inheritune.surgery.anatomy import anatomy_of_folder, find_layers, layer_modules

PATHS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mamba": "backbone.layers",
}


def test_layers_are_found_where_the_family_keeps_them(family, build_model):
    anatomy = find_layers(build_model(family))
    assert anatomy.path == PATHS.get(family, "model.layers")
    assert anatomy.depth == 4
    assert anatomy.depth_field == ("n_layer" if family == "gpt2" else "num_hidden_layers")
    assert anatomy.model_type == family and anatomy.config_path == ()


def test_layer_modules_are_the_blocks_in_order(family, build_model):
    model = build_model(family)
    layers = layer_modules(model)
    assert len(layers) == 4 and len({type(layer) for layer in layers}) == 1
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    assert [name.rsplit(".", 1)[1] for name in names] == ["0", "1", "2", "3"]


def test_anatomy_needs_only_the_config(family, save_reference, tmp_path, build_model):
    folder = save_reference(family, tmp_path / "reference")
    (folder / "model.safetensors").unlink()
    assert anatomy_of_folder(folder) == find_layers(build_model(family))


def test_list_of_experts_as_long_as_the_depth_is_not_taken_for_the_layers(build_model):
    model = build_model("qwen3_moe", num_experts=4, num_hidden_layers=4)
    assert find_layers(model).path == "model.layers"


def test_text_decoder_is_taken_where_a_vision_tower_is_as_deep():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 260, "head_dim": 16, "num_key_value_heads": 1}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    anatomy = find_layers(model)
    assert "language_model" in anatomy.path and anatomy.config_path == ("text_config",)
    assert anatomy.depth == 3


def test_model_whose_depth_is_not_its_config_is_refused(build_model):
    model = build_model("llama")
    del model.model.layers[-1]
    with pytest.raises(SurgeryError, match=r"'llama' has no list of layers of the depth its config states"):
        find_layers(model)
