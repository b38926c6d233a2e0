import pytest
import torch
import torch.nn.functional as F

from inheritune.machine.probe import Choices
from inheritune.training import gradient
from inheritune.training.gradient import accumulate_gradient, prepare_loss
from inheritune.training.optimiser import build_optimiser, switch_off_dropout


def choices(micro_batch=8, **changes):
    plain = {"device": "cpu", "precision": "float32", "compile": False, "threads": 2, "deterministic": True}
    return Choices(micro_batch=micro_batch, **{**plain, **changes})


def some_rows(count=8, length=17):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(3))


def plain_loss_and_gradient(model, rows):
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def ours(model, rows, chosen):
    model.zero_grad(set_to_none=True)
    functions, taken = prepare_loss(model, chosen, vocabulary_size=260)
    loss = accumulate_gradient(functions, rows, taken)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(expected, got, tolerance=1e-5):
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    assert expected[1].keys() == got[1].keys()
    for name, grad in expected[1].items():
        scale = max(float(grad.abs().max()), 1e-6)
        assert float((got[1][name] - grad).abs().max()) <= tolerance * scale, name


def test_loss_and_gradient_are_those_of_the_plain_model(family, build_model):
    model = build_model(family).train()
    switch_off_dropout(model)
    assert_same(plain_loss_and_gradient(model, some_rows()), ours(model, some_rows(), choices()))


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_change_nothing_even_ragged_ones(micro_batch, build_model):
    model = build_model("llama")
    assert_same(ours(model, some_rows(), choices()), ours(model, some_rows(), choices(micro_batch)))


def test_chunks_of_the_head_change_nothing(build_model, monkeypatch):
    model = build_model("gemma2")
    whole = ours(model, some_rows(), choices())
    monkeypatch.setattr(gradient, "LOGITS_AT_ONCE", 260 * 13)
    assert_same(whole, ours(model, some_rows(), choices()))


def test_a_model_that_cannot_be_split_trains_by_its_own_forward(build_model, monkeypatch):
    model = build_model("llama")
    split = ours(model, some_rows(), choices())
    monkeypatch.setattr(gradient, "split_head", lambda model: None)
    functions, taken = prepare_loss(model, choices(), vocabulary_size=260)
    assert taken.loss_path == "model"
    model.zero_grad(set_to_none=True)
    loss = accumulate_gradient(functions, some_rows(), taken)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_same(split, (loss, grads))


def test_bfloat16_stays_near_float32(build_model):
    model = build_model("llama")
    exact, _ = ours(model, some_rows(), choices())
    rough, _ = ours(model, some_rows(), choices(precision="bfloat16"))
    assert rough == pytest.approx(exact, rel=0.02)  # 8 bits of mantissa
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_training_mode_without_dropout_computes_what_evaluation_computes(family, build_model):
    dropouts = {
        "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
        "opt": {"dropout": 0.3, "layerdrop": 0.5},
    }
    model = build_model(family, **dropouts.get(family, {}))
    ids = some_rows()[:, :-1]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False).logits
        switch_off_dropout(model)
        assert torch.equal(model.train()(input_ids=ids, use_cache=False).logits, expected)


def test_only_matrices_decay_and_a_tied_matrix_is_updated_once(build_model):
    model = build_model("gpt2")
    decayed, others = build_optimiser(model, weight_decay=0.1, beta2=0.95).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
