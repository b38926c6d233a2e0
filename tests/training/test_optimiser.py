"""What is trained, at which rate, and with how much dropout."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import RecipeError
from inheritune.machine.probe import Choices
from inheritune.training.gradient import accumulate_gradient, prepare_loss
from inheritune.training.optimiser import (
    beta2_of_half_life,
    build_optimiser,
    freeze,
    set_dropout,
    set_learning_rate,
)

DROPOUTS = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "opt": {"dropout": 0.3, "layerdrop": 0.5},
}
ADAMW = {"weight_decay": 0.1, "beta2": 0.95}
IDS = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(3))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_only_matrices_decay_and_a_tied_matrix_is_updated_once(build_model):
    model = build_model("gpt2")
    decayed, others = build_optimiser(model, **ADAMW).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_groups_hold_what_trains_by_decay_and_scale_in_the_models_order(build_model):
    model = build_model("llama")
    freeze(model, ["lm_head.*", "*.layers.1.*"])
    groups = build_optimiser(model, **ADAMW, lr_scale=lambda name: 0.1 if ".layers." in name else 1.0).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    kinds = [(group["weight_decay"], group["lr_scale"]) for group in groups]
    assert kinds == [(0.1, 0.1), (0.1, 1.0), (0.0, 0.1), (0.0, 1.0)]
    order = list(names.values())
    for group in groups:
        positions = [order.index(names[parameter]) for parameter in group["params"]]
        assert positions == sorted(positions)
    trained = {names[parameter] for group in groups for parameter in group["params"]}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "lm_head.weight" not in trained


def test_a_group_without_parameters_is_left_out(build_model):
    model = build_model("llama")
    freeze(model, ["*norm*"])
    assert len(build_optimiser(model, **ADAMW).param_groups) == 1


def test_the_learning_rate_of_a_group_is_scaled(build_model):
    optimiser = build_optimiser(build_model("llama"), **ADAMW, lr_scale=lambda name: 0.25 if "embed" in name else 1.0)
    set_learning_rate(optimiser, 2e-3)
    assert [group["lr"] for group in optimiser.param_groups] == [5e-4, 2e-3, 2e-3]


def test_a_scale_of_one_is_bit_for_bit_the_plain_optimiser(build_model):
    def trained(lr_scale):
        model = build_model("llama")
        optimiser = build_optimiser(model, **ADAMW, **lr_scale)
        set_learning_rate(optimiser, 1e-3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
        return model.state_dict()

    plain, scaled = trained({}), trained({"lr_scale": lambda name: 1.0})
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


@given(half_life=st.integers(10**3, 10**9), batch=st.integers(1, 10**6), times=st.integers(1, 20))
def test_a_half_life_in_tokens_does_not_depend_on_the_batch(half_life, batch, times):
    beta2 = beta2_of_half_life(half_life, batch)
    assert 0 <= beta2 < 1
    assert beta2**times == pytest.approx(beta2_of_half_life(half_life, times * batch), rel=1e-6, abs=1e-300)


def test_half_of_it_is_left_after_a_half_life():
    assert beta2_of_half_life(10_000, 10_000) == 0.5
    assert beta2_of_half_life(10_000, 1_000) ** 10 == pytest.approx(0.5)


def test_a_pattern_freezes_what_it_matches_and_nothing_else(build_model):
    model = build_model("llama", num_hidden_layers=11)
    frozen = freeze(model, ["model.embed_tokens.*", "*.layers.1.*"])
    assert frozen == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen[0] == "model.embed_tokens.weight"
    assert all(name.startswith("model.layers.1.") for name in frozen[1:])
    assert len(frozen) == 10


@pytest.mark.parametrize("pattern", ["lm_head.*", "transformer.wte.weight"])
def test_a_tied_parameter_is_frozen_under_any_of_its_names(pattern, build_model):
    model = build_model("gpt2")
    assert freeze(model, [pattern]) == ["transformer.wte.weight"]
    assert not model.lm_head.weight.requires_grad


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(build_model):
    model = build_model("llama")
    with pytest.raises(RecipeError, match=r"'model.embed_token' matches no.*Nearest is 'model.embed_tokens.weight'"):
        freeze(model, ["lm_head.*", "model.embed_token"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_left_to_train_is_refused(build_model):
    model = build_model("llama")
    freeze(model, ["model.*"])
    with pytest.raises(RecipeError, match="leaves nothing to train"):
        freeze(model, ["lm_head.*"])
    assert model.lm_head.weight.requires_grad


def test_training_mode_without_dropout_computes_what_evaluation_computes(family, build_model):
    model = build_model(family, **DROPOUTS.get(family, {}))
    expected = logits(model.eval())
    set_dropout(model, 0.0)
    assert torch.equal(logits(model.train()), expected)


def test_dropout_acts_in_training_mode_alone_and_repeats_with_the_random_state(family, build_model):
    model = build_model(family, **DROPOUTS.get(family, {}))
    expected = logits(model.eval())
    if family == "mamba":
        with pytest.raises(RecipeError, match="a mamba has no place for dropout"):
            set_dropout(model, 0.1)
        return
    set_dropout(model, 0.1)
    assert torch.equal(logits(model.eval()), expected)
    functions, choices = prepare_loss(
        model.train(),
        Choices("cpu", "float32", compile=False, micro_batch=3, threads=1, deterministic=True),
        260,
        sequence_length=IDS.shape[1] - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begun = torch.get_rng_state()
        first = accumulate_gradient(functions, IDS, choices)
        second = accumulate_gradient(functions, IDS, choices)
        torch.set_rng_state(begun)
        assert accumulate_gradient(functions, IDS, choices) == first
    assert second != first
    assert not torch.allclose(logits(model), expected, atol=1e-4)


def test_dropout_reaches_attention_and_residuals_and_never_drops_layers(build_model):
    opt, llama, phi3 = (build_model(family, **DROPOUTS.get(family, {})) for family in ("opt", "llama", "phi3"))
    llama.model.layers[0].self_attn.attention_dropout = 0  # a config may write the number without a point
    for model in (opt, llama, phi3):
        set_dropout(model, 0.1)
    assert opt.model.decoder.layerdrop == 0.0
    assert opt.model.decoder.layers[0].dropout == opt.model.decoder.layers[0].self_attn.dropout == 0.1
    assert llama.model.layers[0].self_attn.attention_dropout == 0.1
    assert phi3.model.layers[0].resid_mlp_dropout.p == phi3.model.layers[0].self_attn.attention_dropout == 0.1
    before = copy.deepcopy(opt.config.to_dict())
    set_dropout(opt, 0.0)
    assert opt.config.to_dict() == before
    assert opt.model.decoder.layers[0].dropout == 0.0
