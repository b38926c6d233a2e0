import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inheritune.training.health import FEWEST_STEPS, SIGMAS, WINDOW_STEPS, culprit, trouble, with_latest

CALM = tuple(3.0 + 0.1 * (-1) ** step for step in range(WINDOW_STEPS))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_trouble_from_the_first_step(value):
    assert f"the loss is {value}" in trouble(value, 1.0, ())
    assert f"the gradient norm is {value}" in trouble(3.0, value, ())


def test_a_leap_is_told_once_half_of_the_window_is_there():
    assert trouble(150.0, 1.0, CALM[: FEWEST_STEPS - 1]) is None
    assert "leapt to 150.0000" in trouble(150.0, 1.0, CALM[:FEWEST_STEPS])


def test_six_sigma_is_the_line():
    assert trouble(3.0 + (SIGMAS - 0.01) * 0.1, 1.0, CALM) is None
    assert "more than 6 sigma" in trouble(3.0 + (SIGMAS + 0.01) * 0.1, 1.0, CALM)


@given(st.floats(0, 3.5), st.floats(0, 1e30))
def test_a_loss_that_falls_and_a_gradient_of_any_size_are_no_trouble(loss_nats, grad_norm):
    assert trouble(min(loss_nats, 3.5), grad_norm, CALM) is None


def test_the_window_keeps_the_latest():
    window = ()
    for step in range(WINDOW_STEPS + 5):
        window = with_latest(window, float(step))
    assert window == tuple(float(step) for step in range(5, WINDOW_STEPS + 5))


IDS = torch.arange(12).reshape(2, 6)


def forward_of(model):
    return lambda ids: model(input_ids=ids, use_cache=False).logits


def test_the_first_weight_that_is_not_finite_is_named(build_model):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, :3] = torch.nan
    said = culprit(model, IDS)
    assert said == "weight model.layers.2.mlp.down_proj.weight: 3 of 2048 elements are not finite"


def test_an_overflow_is_named_by_the_module_that_it_comes_out_of(build_model):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(3e38)
    assert culprit(model, IDS).startswith("output of model.layers.1.mlp.up_proj: ")


def test_a_gradient_is_named_by_its_parameter(build_model):
    model = build_model("llama")
    forward_of(model)(IDS).sum().backward()
    model.model.layers[3].self_attn.v_proj.weight.grad[0, 0] = torch.inf
    said = culprit(model, IDS)
    assert said == "gradient of model.layers.3.self_attn.v_proj.weight: 1 of 512 elements are not finite"


def test_where_all_is_finite_the_largest_gradient_is_named(build_model):
    model = build_model("llama")
    forward_of(model)(IDS).sum().backward()
    model.lm_head.weight.grad[0, 0] = 1e9
    assert "largest gradient is that of lm_head.weight (1e+09)" in culprit(model, IDS)
