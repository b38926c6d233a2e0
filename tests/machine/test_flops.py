import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inheritune.machine import flops
from inheritune.machine.flops import training_flops


def test_a_llama_is_counted_as_by_hand():
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=80, vocab_size=300, tie_word_embeddings=True))
    layer = 48 * 48 + 2 * 48 * 24 + 48 * 48 + 3 * 48 * 80
    expected = 6 * (3 * layer + 48 * 300) + 3 * 6 * 48 * 64  # two products of 2 T D, half of them, three times
    assert training_flops(model, 64) == pytest.approx(expected, rel=1e-3)  # rotary angles are a product, too


def test_a_gpt2_is_counted_as_by_hand():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=50, vocab_size=200))
    expected = 6 * (2 * 12 * 32 * 32 + 32 * 200) + 2 * 6 * 32 * 50
    assert training_flops(model, 50) == pytest.approx(expected, rel=1e-6)


def test_every_family_has_a_number_near_six_per_matrix_parameter(family, build_model):
    model = build_model(family)
    used = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name and "wpe" not in name]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    matrices = 6 * (sum(p.numel() for p in used) + tied * model.get_output_embeddings().weight.numel())
    counted = training_flops(model, 256)
    if family == "qwen3_moe":  # two of the four experts of each layer work on a token
        experts = [p for name, p in model.named_parameters() if "experts" in name]
        matrices += 6 * sum(p.numel() / 2 - (p.numel() if p.dim() == 2 else 0) for p in experts)
    squares = 4 * 2 * 6 * 32 * 256  # whole ones, of four layers
    assert 0.95 * matrices <= counted <= 1.02 * matrices + squares


@pytest.mark.parametrize("length", [1, 2, 64, 100])
def test_the_line_through_two_short_passes_meets_the_long_one(length, build_model, monkeypatch):
    model = build_model("llama").train()
    by_line = training_flops(model, length)
    monkeypatch.setattr(flops, "LENGTH", 10**6)
    assert by_line == pytest.approx(training_flops(model, length), rel=1e-3)
    assert model.training
