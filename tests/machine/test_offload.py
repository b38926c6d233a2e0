import pytest
import torch

from inheritune.machine.offload import narrow_matrices, offload
from inheritune.surgery.anatomy import layer_modules

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))


def logits(model, *, autocast):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return model(input_ids=IDS, use_cache=False).logits


def test_narrow_matrices_change_no_bit_under_autocast(family, build_model):
    model = build_model(family)
    before_BTV, bytes_before = logits(model, autocast=True), sum(p.nbytes for p in model.parameters())
    narrow_matrices(model)
    assert torch.equal(logits(model, autocast=True), before_BTV)
    assert sum(p.nbytes for p in model.parameters()) < bytes_before
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_an_offloaded_model_computes_the_same_and_keeps_its_weights_at_home(family, build_model):
    model = build_model(family)
    expected = logits(model, autocast=False)
    layers = layer_modules(model)
    homes = {}
    offload(model, layers, torch.device("cpu"))
    homes = {parameter: parameter.data_ptr() for layer in layers for parameter in layer.parameters()}
    for _ in range(2):
        assert torch.equal(logits(model, autocast=False), expected)
        assert {parameter: parameter.data_ptr() for parameter in homes} == homes


def test_only_one_layer_is_on_the_device_at_a_time(build_model):
    model = build_model("llama")
    layers = layer_modules(model)
    offload(model, layers, torch.device("cpu"))
    homes = {layer: next(layer.parameters()).data_ptr() for layer in layers}
    away = []
    for layer in layers:
        layer.self_attn.register_forward_hook(
            lambda *_: away.append([next(each.parameters()).data_ptr() != home for each, home in homes.items()])
        )
    logits(model, autocast=False)
    assert away == [[index == turn for index in range(4)] for turn in range(4)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_layers_are_not_resident(build_model):
    model = build_model("llama")
    offload(model, layer_modules(model), torch.device("cuda"))
    with torch.no_grad():
        assert model(input_ids=IDS.cuda(), use_cache=False).logits.is_cuda
    assert all(not parameter.is_cuda for layer in layer_modules(model) for parameter in layer.parameters())
