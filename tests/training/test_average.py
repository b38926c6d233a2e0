"""The weight average is the closed form of its definition, and only visits the model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inheritune.errors import TrainingError
from inheritune.training.average import WeightAverage
from inheritune.training.optimiser import freeze


def scalar_model(value):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def move(model, amount):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount)


weights = st.floats(-100, 100, width=32)
steps = st.lists(st.tuples(weights, st.integers(1, 10_000)), min_size=1, max_size=30)


@given(start=weights, steps=steps, half_life=st.integers(1, 100_000))
def test_the_average_is_the_sum_of_the_weights_by_the_tokens_since(start, steps, half_life):
    model = scalar_model(start)
    average = WeightAverage(model, half_life)
    for value, num_tokens in steps:
        nn.init.constant_(model.weight, value)
        average.update(model, num_tokens)
    left, expected = sum(tokens for _, tokens in steps), 0.0
    expected += 0.5 ** (left / half_life) * start
    for value, num_tokens in steps:
        left -= num_tokens
        expected += (1 - 0.5 ** (num_tokens / half_life)) * 0.5 ** (left / half_life) * value
    assert float(average.tensors()["weight"]) == pytest.approx(
        expected, abs=1e-3
    )  # float32, at most 30 roundings of 100


@given(value=weights, tokens=st.lists(st.integers(1, 10**7), max_size=20), half_life=st.integers(1, 10**9))
def test_constant_weights_stay_bit_for_bit(value, tokens, half_life):
    model = scalar_model(value)
    average = WeightAverage(model, half_life)
    for num_tokens in tokens:
        average.update(model, num_tokens)
    assert torch.equal(average.tensors()["weight"], model.weight.detach())


@given(value=weights, parts=st.lists(st.integers(1, 1000), min_size=1, max_size=10))
def test_a_stretch_of_tokens_may_be_cut_into_steps(value, parts):
    averages = []
    for cut in (parts, [sum(parts)]):
        model = scalar_model(0.0)
        average = WeightAverage(model, 500)
        nn.init.constant_(model.weight, value)
        for num_tokens in cut:
            average.update(model, num_tokens)
        averages.append(float(average.tensors()["weight"]))
    assert averages[0] == pytest.approx(averages[1], rel=1e-5, abs=1e-5)


def test_after_a_half_life_the_first_weights_count_half():
    model = scalar_model(1.0)
    average = WeightAverage(model, 1000)
    move(model, -1.0)
    average.update(model, 1000)
    assert float(average.tensors()["weight"]) == 0.5


def test_tied_parameters_stand_once_and_frozen_ones_not_at_all(build_model):
    model = build_model("gpt2")
    frozen = freeze(model, ["transformer.h.0.*"])
    tensors = WeightAverage(model, 1000).tensors()
    assert tensors.keys() == dict(model.named_parameters()).keys() - set(frozen)
    assert "transformer.wte.weight" in tensors and "lm_head.weight" not in tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_has_the_average_inside_the_block_and_its_own_weights_after_it(fails, build_model):
    model = build_model("gpt2")
    average = WeightAverage(model, 1000)
    move(model, 1e-3)
    average.update(model, 300)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in average.tensors().items()}
    try:
        with average.applied_to(model):
            assert all(torch.equal(parameter, kept[name]) for name, parameter in model.named_parameters())
            assert model.lm_head.weight is model.transformer.wte.weight
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in average.tensors().items())
    average.update(model, 300)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


def test_an_average_loaded_goes_on_bit_for_bit(build_model):
    def trained(reload):
        model = build_model("llama")
        average = WeightAverage(model, 1000)
        for _ in range(3):
            move(model, 1e-3)
            average.update(model, 100)
            if reload:
                saved = {name: tensor.clone() for name, tensor in average.tensors().items()}
                average = WeightAverage(model, 1000)
                average.load(saved)
        return average.tensors()

    straight, reloaded = trained(False), trained(True)
    assert all(torch.equal(straight[name], reloaded[name]) for name in straight)


def test_the_average_of_another_model_is_refused(build_model):
    other = WeightAverage(build_model("llama", num_hidden_layers=3), 1000).tensors()
    with pytest.raises(TrainingError, match="other tensors than the model"):
        WeightAverage(build_model("llama"), 1000).load(other)


def test_weights_of_fewer_bits_are_averaged_in_float32():
    model = scalar_model(1.0).to(torch.bfloat16)
    average = WeightAverage(model, 1000)
    move(model, 1.0)
    average.update(model, 1)
    assert float(average.tensors()["weight"]) == pytest.approx(2 - 0.5 ** (1 / 1000))
    with average.applied_to(model):
        assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 2.0
