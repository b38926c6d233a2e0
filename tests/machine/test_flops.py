import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inheritune.machine import flops
from inheritune.machine.flops import training_flops


def test_a_llama_is_counted_as_by_hand():
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=80, vocab_size=300, tie_word_embeddings=True))
    layer = 48 * 48 + 2 * 48 * 24 + 48 * 48 + 3 * 48 * 80
    expected = 6 * (3 * layer + 48 * 300) + 3 * 6 * 48 * 64  # two products of 2 T D, half of them, three times
    assert training_flops(model, 64).per_token == pytest.approx(expected, rel=1e-3)  # rotary angles are a product, too


def test_a_gpt2_is_counted_as_by_hand():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=50, vocab_size=200))
    expected = 6 * (2 * 12 * 32 * 32 + 32 * 200) + 2 * 6 * 32 * 50
    assert training_flops(model, 50).per_token == pytest.approx(expected, rel=1e-6)


def test_every_family_has_a_number_near_six_per_matrix_parameter(family, build_model):
    model = build_model(family)
    used = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name and "wpe" not in name]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    matrices = 6 * (sum(p.numel() for p in used) + tied * model.get_output_embeddings().weight.numel())
    length = 128
    counted = training_flops(model, length).per_token
    if family == "qwen3_moe":  # two of the four experts of each layer work on a token
        experts = [p for name, p in model.named_parameters() if "experts" in name]
        matrices += 6 * sum(p.numel() / 2 - (p.numel() if p.dim() == 2 else 0) for p in experts)
    squares = 4 * 2 * 6 * 32 * length  # whole ones, of four layers
    assert 0.95 * matrices <= counted <= 1.02 * matrices + squares


@pytest.mark.parametrize("length", [1, 2, 256, 400])
def test_the_line_through_two_short_passes_meets_the_long_one(length, build_model, monkeypatch):
    model = build_model("llama", max_position_embeddings=512).train()
    by_line = training_flops(model, length)
    monkeypatch.setattr(flops, "LENGTH", 10**6)
    assert by_line.per_token == pytest.approx(training_flops(model, length).per_token, rel=1e-3)
    assert by_line.is_counted
    assert model.training


def test_layers_that_pad_to_chunks_are_counted_near_their_matrices():
    config = AutoConfig.for_model(
        "qwen3_next", hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, vocab_size=260, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    short, long = (training_flops(model, length).per_token for length in (256, 2048))
    assert 0 < short <= long < 10 * short


def test_what_cannot_be_run_for_it_is_estimated_and_says_so(build_model, monkeypatch):
    model = build_model("llama", tie_word_embeddings=False)

    def no_memory(model, length):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(flops, "_forward_flops", no_memory)
    estimate = training_flops(model, 64)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert (estimate.is_counted, estimate.per_token) == (False, 6 * (matrices - 260 * 32))
