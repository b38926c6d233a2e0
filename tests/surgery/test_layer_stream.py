import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import SurgeryError
from inheritune.surgery import tensor_file
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.folder import check_files, load_model
from inheritune.surgery.layer_stream import LayerStream, NotByLayer, read_tensor
from inheritune.surgery.proof import random_tokens


def whole(folder, num_layers):
    """Hidden states and logits of the model in memory."""
    model, kept = load_model(folder), []
    for layer in layer_modules(model)[:num_layers]:
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out if isinstance(out, torch.Tensor) else out[0]))
    ids = random_tokens(model)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return kept, logits


@pytest.mark.parametrize("tied", [True, False])
def test_layers_one_by_one_compute_what_the_model_in_memory_does(family, tied, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference", tie_word_embeddings=tied)
    stream = LayerStream(check_files(folder))
    stream.check(all_are_read=True)
    hidden, logits = stream.run(random_tokens(stream.model), 4, head=True)
    expected, expected_logits = whole(folder, 4)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(*pair) for pair in zip(hidden, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_files_of_another_dtype_run_as_the_model_in_memory_does(family, dtype, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stream = LayerStream(check_files(folder))
    stream.check(all_are_read=True)
    hidden, logits = stream.run(random_tokens(stream.model), 4, head=True)
    expected, expected_logits = whole(folder, 4)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(*pair) for pair in zip(hidden, expected, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_first_layers_run_without_the_others_in_the_files(family, save_reference, tmp_path):
    folder = save_reference(family, tmp_path / "reference")
    expected, _ = whole(folder, 2)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if re.search(r"(layers|h)\.[23]\.", name):
            tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stream = LayerStream(check_files(folder))
    hidden, logits = stream.run(random_tokens(stream.model), 2, head=False)
    assert logits is None
    assert all(torch.equal(*pair) for pair in zip(hidden, expected, strict=True))


def test_old_gpt2_files_without_prefix_run_layer_by_layer(save_reference, tmp_path):
    folder = save_reference("gpt2", tmp_path / "reference")
    expected, _ = whole(folder, 4)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stream = LayerStream(check_files(folder))
    stream.check(all_are_read=True)
    hidden, _ = stream.run(random_tokens(stream.model), 4, head=True)
    assert all(torch.equal(*pair) for pair in zip(hidden, expected, strict=True))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.mlp.up_proj.weight"])
def test_tensor_that_is_missing_or_misshapen_is_told_from_the_headers(name, save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=rf"1 mismatched \(first: .*{name}"):
        LayerStream(check_files(folder)).check(all_are_read=False)
    del tensors[name]
    save_file({**tensors, "extra": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match=rf"1 missing \(first: {name}\) tensors"):
        LayerStream(check_files(folder)).check(all_are_read=False)
    with pytest.raises(SurgeryError, match=r"1 unexpected \(first: extra\) tensors"):
        LayerStream(check_files(folder)).check(all_are_read=True)


def test_tensor_that_is_used_before_it_is_loaded_ends_the_run(save_reference, tmp_path, monkeypatch):
    stream = LayerStream(check_files(save_reference("llama", tmp_path / "reference")))
    later = stream.layers[2]

    def look_ahead(_module, _inputs):
        later.mlp.up_proj.weight.mul_(2)

    stream.layers[0].register_forward_pre_hook(look_ahead)
    with pytest.raises(NotByLayer, match="not loaded"):
        stream.run(random_tokens(stream.model), 4, head=True)


def test_layer_whose_tensors_are_not_all_in_the_files_ends_the_run(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stream = LayerStream(check_files(folder))
    with pytest.raises(NotByLayer, match=r"mlp\.up_proj\.weight' of layer 1 is not in its files"):
        stream.run(random_tokens(stream.model), 4, head=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4)])
def test_tensor_is_read_as_it_was_saved(dtype, shape, tmp_path, monkeypatch):
    tensor = torch.randn(shape).to(dtype)
    save_file({"other": torch.ones(1), "a": tensor}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 5)
    found = read_tensor(check_files(tmp_path).tensors["a"], lambda dtype, count: torch.empty(count, dtype=dtype))
    half = dtype in (torch.float16, torch.bfloat16)
    assert found.dtype is (torch.float32 if half else dtype) and torch.equal(found, tensor.to(found.dtype))


MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from inheritune.surgery import tensor_file
from inheritune.surgery.anatomy import layer_modules
from inheritune.surgery.folder import check_files, load_model
from inheritune.surgery.proof import states_of
from inheritune.surgery.tensor_file import Piece, read_header, write_file

def data_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:"))

folder = Path(sys.argv[1])
one, big = folder / "one", folder / "big"
big.mkdir()
config = json.loads((one / "config.json").read_text())
(big / "config.json").write_text(json.dumps({**config, "num_hidden_layers": DEPTH}))
pieces = []
for name, entry in read_header(one / "model.safetensors").items():
    names = [name.replace(".0.", f".{index}.") for index in range(DEPTH)] if ".0." in name else [name]
    pieces += [Piece(each, entry, "BF16") for each in names]
write_file(big / "model.safetensors", pieces)

states_of(check_files(folder / "tiny"), 2, to_the_end=True, is_child=True)  # everything is imported and warm
limit = data_bytes() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
states = states_of(check_files(big), DEPTH, to_the_end=True, is_child=True)
assert len(states.hidden_BTD) == DEPTH and states.logits_BTV is not None
try:
    load_model(big)
except Exception as error:
    print("whole: no memory")
else:
    print("whole: fits")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_model_of_many_layers_runs_in_the_memory_of_two(save_reference, tmp_path):
    depth, sizes = 20, {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 1}
    one = save_reference("llama", tmp_path / "one", False, **sizes, head_dim=128)
    save_reference("llama", tmp_path / "tiny", False, num_hidden_layers=2)
    layer_bytes = 4 * sum(
        tensor.numel() for name, tensor in load_file(one / "model.safetensors").items() if "layers" in name
    )
    spare = 4 * layer_bytes + 100_000_000  # two layers, their bytes before conversion, threads and the forward's own
    assert spare < depth * layer_bytes / 1.5
    code = MEASURE.replace("DEPTH", str(depth))
    ended = subprocess.run([sys.executable, "-c", code, tmp_path, str(spare)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "whole: no memory"
