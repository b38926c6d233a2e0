import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.machine import attention
from inheritune.machine.attention import (
    NAME,
    attend_by_blocks,
    block_size,
    causal_attention,
    causal_attention_on_gpu,
)
from inheritune.machine.probe import Choices, autocast, best_device, computing_as

LONG = 150
"""Positions that make three blocks, the last one ragged."""


def some_ids(length=LONG):
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(1))


def logits_and_gradients(model, ids_BT):
    model.zero_grad(set_to_none=True)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
    return logits_BTV.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(got, expected, share=1e-5):
    assert float((got - expected).detach().abs().max()) <= share * max(float(expected.detach().abs().max()), 0.1)


def test_a_row_is_cut_into_at_most_four_blocks():
    assert [block_size(length) for length in (1, 17, 256, 257, 512, 1024, 2048)] == [64, 64, 64, 128, 128, 256, 512]


@settings(deadline=None, max_examples=40)
@given(
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    length=st.integers(1, 200),
    size=st.sampled_from([1, 8, 20]),
    value_size=st.sampled_from([4, 20]),
    scale=st.floats(0.01, 2.0),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_torch(key_heads, group, length, size, value_size, scale, seed):
    generator = torch.Generator().manual_seed(seed)

    def leaf(heads, width):
        return torch.randn(2, heads, length, width, generator=generator).requires_grad_()

    arguments = leaf(key_heads * group, size), leaf(key_heads, size), leaf(key_heads, value_size)
    upstream = torch.randn(2, key_heads * group, length, value_size, generator=generator)
    results: list[list[torch.Tensor]] = []
    for attend in (
        lambda q, k, v: causal_attention(q, k, v, scale),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True),
    ):
        output = attend(*arguments)
        results.append([output.detach(), *torch.autograd.grad(output, arguments, upstream)])
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))


def test_in_bfloat16_the_softmax_is_still_float32():
    query, key, value = (torch.randn(1, 2, LONG, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    exact = causal_attention(query, key, value, 0.25)
    rough = causal_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.25)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.float(), exact, 2**-6)


def test_keys_that_were_widened_are_narrowed_once_and_kept_once():
    """As rotary positions widen them; autocast would narrow what each block reads, and the backward pass keep it."""
    query, key, value = (torch.randn(1, 2, LONG, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        got = causal_attention(query.requires_grad_(), key.requires_grad_(), value.bfloat16().requires_grad_(), 0.25)
    assert torch.equal(got, causal_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.25))
    of_keys = [each.untyped_storage().nbytes() for each in kept.values() if 16 in each.shape[-2:]]
    assert sum(of_keys) == 3 * query.numel() * 2  # query, key and value, each in bfloat16


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "value_size"), [(4, 4, 100, 100), (4, 2, 64, 64), (2, 2, 20, 17)]
)
def test_attention_for_a_gpu_mixes_as_attention_by_blocks(
    heads, key_heads, size, value_size, deterministic, monkeypatch
):
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, count, LONG, width, generator=generator)
        for count, width in ((heads, size), (key_heads, size), (key_heads, value_size))
    )
    mask = attention.create_block_mask(attention._is_past, None, None, LONG, LONG, device="cpu")
    monkeypatch.setitem(attention._block_masks, LONG, mask)
    held = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        got = causal_attention_on_gpu(query, key, value, 0.3)
    finally:
        torch.use_deterministic_algorithms(held)
    assert_close(got, causal_attention(query, key, value, 0.3))


@pytest.mark.skipif(best_device() != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [False, True])
def test_compiled_on_a_gpu_a_model_learns_by_blocks_what_it_learned_before(deterministic, build_model):
    sizes = {"hidden_size": 200, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 100}
    chosen = Choices("cuda", "bfloat16", compile=True, micro_batch=2, threads=1, deterministic=deterministic)
    results = []
    for by_blocks in (False, True):
        torch.manual_seed(0)
        model = build_model("llama", **sizes).cuda()
        if by_blocks:
            assert attend_by_blocks(model, LONG)
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        with computing_as(chosen), autocast(chosen):
            results.append(logits_and_gradients(model, some_ids().cuda()))
    (before_BTV, expected), (after_BTV, got) = results
    assert_close(after_BTV.float(), before_BTV.float(), 2**-5)
    for name, gradient in expected.items():
        assert float((got[name] - gradient).norm()) <= 0.05 * float(gradient.norm()), name


def test_every_family_computes_the_same_by_blocks(family, build_model):
    model = build_model(family)
    ids_BT = some_ids(min(LONG, getattr(model.config, "max_position_embeddings", LONG)))
    before_BTV, expected = logits_and_gradients(model, ids_BT)
    switched = attend_by_blocks(model, LONG)
    assert switched == (model.config._attn_implementation == NAME)
    after_BTV, got = logits_and_gradients(model, ids_BT)
    assert_close(after_BTV, before_BTV)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(got[name], gradient, 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_usual_families_are_switched(family, build_model):
    model = build_model(family).train()
    assert attend_by_blocks(model, LONG)
    assert model.training


@pytest.mark.parametrize(("kind", "layers"), [("llama", 4), ("gemma3_text", 1)])
def test_blocks_serve_plain_layers_and_leave_windows_to_transformers(kind, layers, build_model, monkeypatch):
    model = build_model(kind)
    expected = model(input_ids=some_ids(128), use_cache=False).logits
    assert attend_by_blocks(model, LONG)
    called = []
    monkeypatch.setattr(
        "inheritune.machine.attention.causal_attention",
        lambda *arguments: called.append(1) or causal_attention(*arguments),
    )
    assert_close(model(input_ids=some_ids(128), use_cache=False).logits, expected)
    assert len(called) == layers


def test_scores_are_computed_as_ever(build_model):
    model = build_model("llama")
    with torch.no_grad():
        expected = model(input_ids=some_ids(128), use_cache=False).logits
        assert attend_by_blocks(model, LONG)
        assert torch.equal(model(input_ids=some_ids(128), use_cache=False).logits, expected)


def test_dropout_is_left_to_transformers(build_model, monkeypatch):
    model = build_model("llama", attention_dropout=0.5).train()
    assert attend_by_blocks(model, LONG)
    monkeypatch.setattr("inheritune.machine.attention.causal_attention", lambda *_: pytest.fail("dropout was lost"))
    first, second = (model(input_ids=some_ids(128), use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_a_model_that_computes_otherwise_under_another_name_is_left_as_it_was(build_model):
    model = build_model("llama")
    own_forward = model.forward

    def forward(**arguments):
        output = own_forward(**arguments)
        if model.config._attn_implementation == "sdpa":
            output.logits = output.logits + 1
        return output

    model.forward = forward
    assert not attend_by_blocks(model, LONG)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_was_loaded_with_another_attention_keeps_it(build_model):
    model = build_model("llama")
    model.set_attn_implementation("eager")
    assert not attend_by_blocks(model, LONG)
    assert model.config._attn_implementation == "eager"


def test_the_switch_leaves_no_trace_in_a_saved_model(build_model, tmp_path):
    model = build_model("llama")
    before = model.config.to_json_string()
    assert attend_by_blocks(model, LONG)
    assert model.config.to_json_string() == before
    model.save_pretrained(tmp_path)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
