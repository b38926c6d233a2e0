import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.analysis import attention
from inheritune.analysis.attention import LayerAttention, attention_rank, column_mass, measure_attention
from inheritune.errors import EvaluationError
from inheritune.surgery.layer_stream import LayerStream, NotByLayer

T = 40


def ids_of(count=5, length=32):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(0))


def causal(scores_TT):
    mask_TT = torch.ones_like(scores_TT).tril().bool()
    return torch.where(mask_TT, scores_TT, -math.inf).softmax(-1)


def test_all_weight_on_one_key_is_rank_one_and_one_column():
    one_column = torch.zeros(T, T)
    one_column[:, 0] = 1
    assert attention_rank(one_column[None]).tolist() == [1]
    assert column_mass(one_column[None]).tolist() == [1]


def test_every_query_on_its_own_key_has_the_rank_and_mass_of_the_share():
    eye = torch.eye(T)[None]
    assert attention_rank(eye).tolist() == [36]
    assert column_mass(eye).tolist() == [36]
    assert attention_rank(eye, 0.95).tolist() == [38]
    assert column_mass(eye, 1.0).tolist() == [40]


@pytest.mark.parametrize(("counts", "rank"), [((20, 20), 2), ((36, 4), 1), ((20, 16, 4), 2), ((10, 10, 10, 10), 4)])
def test_queries_in_groups_that_share_a_key_have_one_direction_for_each_group(counts, rank):
    groups = torch.zeros(sum(counts), sum(counts))
    begin = 0
    for key, count in enumerate(counts):
        groups[begin : begin + count, key] = 1  # singular values: the square roots of the counts
        begin += count
    assert attention_rank(groups[None]).tolist() == [rank]
    assert column_mass(groups[None]).tolist() == [rank]


@given(st.integers(1, 12), st.floats(0.5, 0.99), st.integers(0, 99))
def test_the_rank_is_what_singular_values_say(size, energy, seed):
    scores_TT = 3 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    matrix_TT = causal(scores_TT)
    squares = torch.linalg.svdvals(matrix_TT.double()).square()
    held = squares.cumsum(0) / squares.sum()
    expected = int((held < energy - 1e-9).sum()) + 1
    found = int(attention_rank(matrix_TT[None], energy))
    assert abs(found - expected) <= int(bool((held - energy).abs().min() < 1e-6))


def test_a_layer_is_lazy_below_the_tolerance_and_strictly_so_at_one():
    assert LayerAttention(0, (1.0, 1.0), (1.0, 1.0)).is_strictly_lazy
    near = LayerAttention(0, (1.0, 1.4), (1.0, 2.0))
    assert near.is_lazy and not near.is_strictly_lazy
    assert (near.max_rank, near.mean_rank, near.mean_mass) == (1.4, 1.2, 1.5)
    assert not LayerAttention(0, (1.0, 1.6), (1.0, 1.0)).is_lazy
    without = LayerAttention(3, (), ())
    assert not without.is_lazy and not without.is_strictly_lazy and math.isnan(without.max_rank)


def test_a_layer_made_lazy_on_purpose_is_found(build_model, tmp_path):
    """GPT-2, layer 2: every query is one constant, and the first position alone has a key along it."""
    model = build_model("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight[0] = 0
        model.transformer.wpe.weight[0, 0] = 50  # only the first position looks like this
        layer = model.transformer.h[2]
        size = model.config.n_embd
        layer.attn.c_attn.weight[:, : 2 * size] = 0
        layer.attn.c_attn.bias[:size] = 10
        layer.attn.c_attn.weight[0, size : 2 * size] = 10
    model.save_pretrained(tmp_path)
    found = measure_attention(tmp_path, ids_of())
    assert [each.is_lazy for each in found] == [False, False, True, False]
    assert found[2].is_strictly_lazy and found[2].mean_mass == 1


def test_every_family_is_measured_by_its_own_weights(family, build_model, tmp_path):
    model = build_model(family)
    model.save_pretrained(tmp_path)
    if family == "mamba":
        with pytest.raises(EvaluationError, match=r"no layer shows attention weights.*mamba.*--no-attention"):
            measure_attention(tmp_path, ids_of())
        return
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(input_ids=ids_of(), output_attentions=True, use_cache=False).attentions
    found = measure_attention(tmp_path, ids_of())
    assert len(found) == len(weights) == 4
    for each, weights_SHTT in zip(found, weights, strict=True):
        ranks = attention_rank(weights_SHTT.flatten(0, 1)).view(weights_SHTT.shape[:2]).double().mean(0)
        masses = column_mass(weights_SHTT.flatten(0, 1)).view(weights_SHTT.shape[:2]).double().mean(0)
        assert each.ranks == pytest.approx(ranks.tolist(), abs=0.41)  # 2 of 5 sequences may fall on the other side
        assert each.masses == pytest.approx(masses.tolist(), abs=0.41)


SMALL = {"vocab_size": 260, "bos_token_id": 256, "eos_token_id": 256}
OTHERS = {
    "falcon": {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "deepseek_v2": {
        **SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    },
    "gpt_oss": {
        **SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "num_local_experts": 2, "num_experts_per_tok": 1,
    },
    "qwen3_next": {
        **SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_grouped_latent_and_sink_attention_is_measured_and_hybrids_say_which_layers_have_none(kind, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind])).save_pretrained(tmp_path)
    found = measure_attention(tmp_path, ids_of())
    assert [len(each.ranks) for each in found] == ([0, 4] if kind == "qwen3_next" else [4, 4])
    assert all(1 <= rank <= 32 for each in found for rank in each.ranks)


def test_whole_and_layer_by_layer_is_the_same_and_so_is_any_number_at_once(build_model, tmp_path, monkeypatch):
    build_model("qwen3").save_pretrained(tmp_path)
    expected = measure_attention(tmp_path, ids_of())
    monkeypatch.setattr(attention, "sequences_at_once", lambda model, length: 2)
    assert measure_attention(tmp_path, ids_of()) == expected

    def refuse(*_arguments, **_named):
        raise NotByLayer("for a test")

    monkeypatch.setattr(LayerStream, "run", refuse)
    assert measure_attention(tmp_path, ids_of()) == expected


def test_a_layer_with_nan_is_named(build_model, tmp_path):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match="layer 1 gives values that are not finite"):
        measure_attention(tmp_path, ids_of())


def test_passes_are_cut_to_the_widest_activation(build_model):
    model = build_model("llama")
    widest = 64
    assert attention.sequences_at_once(model, 100) == attention.VALUES_AT_ONCE // (100 * widest)


def test_passes_shrink_where_memory_runs_out(build_model, tmp_path, monkeypatch):
    build_model("llama").save_pretrained(tmp_path)
    ids = torch.randint(256, (7, 12), generator=torch.Generator().manual_seed(0))
    whole = measure_attention(tmp_path, ids)
    run, sizes = LayerStream.run, []

    def tight(self, part, *given, **named):
        found = run(self, part, *given, **named)  # layers have been looked at when memory runs out
        if len(part) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(part))
        return found

    monkeypatch.setattr(LayerStream, "run", tight)
    again = measure_attention(tmp_path, ids)
    assert sum(sizes) == 7
    assert [each.ranks for each in again] == [pytest.approx(each.ranks) for each in whole]
    assert [each.masses for each in again] == [pytest.approx(each.masses) for each in whole]


def test_one_sequence_that_does_not_fit_is_an_error(build_model, tmp_path, monkeypatch):
    build_model("llama").save_pretrained(tmp_path)

    def full(self, part, *given, **named):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LayerStream, "run", full)
    with pytest.raises(EvaluationError, match="not enough memory for the attention of one sequence of 12 tokens"):
        measure_attention(tmp_path, torch.zeros(4, 12, dtype=torch.long))
