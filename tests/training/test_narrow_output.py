"""One bfloat16 copy of the output matrix: the same bits as a cast for every chunk."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, ElectraConfig

from inheritune.machine.head import split_head
from inheritune.machine.probe import Choices, computing_as
from inheritune.training import gradient
from inheritune.training.gradient import accumulate_gradient, prepare_loss
from inheritune.training.narrow_output import narrow_output
from inheritune.training.optimiser import freeze, set_dropout

CHOICES = Choices("cpu", "bfloat16", True, micro_batch=3, threads=2, deterministic=True)
ROWS = torch.randint(0, 256, (8, 17), generator=torch.Generator().manual_seed(3))
"""Two micro-batches of 3 and one of 2: 48 and 32 positions, in chunks of 12 at most."""


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(gradient, "LEAST_POSITIONS", 12)
    monkeypatch.setattr(gradient, "LOGITS_AT_ONCE", {"cpu": 0})


def steps(model, count=2, **settings):
    """Losses and gradients of some steps, the weights moved after each."""
    told = []
    with computing_as(CHOICES):
        functions, _ = prepare_loss(model, CHOICES, 260, sequence_length=16, **settings)
        for _ in range(count):
            model.zero_grad(set_to_none=True)
            losses = accumulate_gradient(functions, ROWS, CHOICES)
            grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            told.append((losses, grads))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad)
    return functions, told


def assert_same_bits(one, other):
    for (losses, grads), (other_losses, other_grads) in zip(one, other, strict=True):
        assert losses == other_losses
        assert grads.keys() == other_grads.keys()
        assert all(torch.equal(grad, other_grads[name]) for name, grad in grads.items())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {}),
        ("cohere", {}),  # scales its logits
    ],
)
def test_no_bit_changes_while_the_weights_move(kind, changes, build_model, small_chunks, monkeypatch):
    twins = [build_model(kind, **changes).train() for _ in range(2)]
    for twin in twins:
        set_dropout(twin, 0.0)
    functions, narrow = steps(twins[0])
    assert functions.narrow_output is not None
    monkeypatch.setattr(gradient, "narrow_output", lambda model, split: None)
    functions, cast = steps(twins[1])
    assert functions.narrow_output is None
    assert narrow[0][0].token_nats != narrow[1][0].token_nats  # the second step has other weights
    assert_same_bits(narrow, cast)


def test_no_bit_changes_where_the_reference_teaches(build_model, small_chunks, monkeypatch):
    teacher = build_model("llama", num_hidden_layers=6)
    twins = [build_model("llama").train() for _ in range(2)]
    with torch.no_grad():
        for twin in twins:
            twin.lm_head.weight.mul_(1.5)
    functions, narrow = steps(twins[0], teacher=teacher, distill_weight=0.5)
    assert functions.narrow_output is not None
    monkeypatch.setattr(gradient, "narrow_output", lambda model, split: None)
    _, cast = steps(twins[1], teacher=teacher, distill_weight=0.5)
    assert narrow[0][0].distill_nats > 0
    assert_same_bits(narrow, cast)


def test_the_model_itself_stays_as_it_is(build_model, small_chunks):
    model = build_model("gpt2").train()
    output, before = model.lm_head, set(model.state_dict())
    functions, _ = steps(model, count=1)
    assert functions.narrow_output.linear is not output
    assert model.lm_head is output
    assert set(model.state_dict()) == before
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_frozen_output_gets_no_gradient_until_it_trains(build_model, small_chunks):
    model = build_model("llama", tie_word_embeddings=False).train()
    freeze(model, ("lm_head.*",))
    functions, [(_, grads)] = steps(model, count=1)
    assert functions.narrow_output is not None
    assert grads
    assert model.lm_head.weight.grad is None
    model.lm_head.weight.requires_grad_(True)
    with computing_as(CHOICES):
        accumulate_gradient(functions, ROWS, CHOICES)
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_matrix_and_copy_are_freed_with_the_stage(build_model, small_chunks):
    model = build_model("llama", tie_word_embeddings=False).train()
    functions, _ = steps(model, count=1)
    kept = [weakref.ref(each) for each in (model.lm_head.weight, functions.narrow_output.linear.weight)]
    del model, functions, _
    gc.collect()
    assert [each() for each in kept] == [None, None]


def test_what_an_unfinished_step_has_left_is_forgotten(build_model, small_chunks):
    """As after memory has run out between a chunk's product and its sum."""
    model = build_model("llama").train()
    functions, [(_, expected)] = steps(model, count=1)
    left = functions.narrow_output.linear.weight
    left.grad = torch.ones_like(left)
    with torch.no_grad(), computing_as(CHOICES):
        for name, parameter in model.named_parameters():
            parameter.copy_(build_model("llama").get_parameter(name))
    model.zero_grad(set_to_none=True)
    with computing_as(CHOICES):
        accumulate_gradient(functions, ROWS, CHOICES)
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in model.named_parameters())


def test_a_head_that_begins_narrower_or_wider_than_its_output(small_chunks):
    """As Electra's, which goes from the size of the body to that of the embeddings first."""
    sizes = {"vocab_size": 260, "embedding_size": 16, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "is_decoder": True}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForCausalLM.from_config(ElectraConfig(**sizes, **layers, **no_dropout)).train()
    assert model.training
    functions, [(_, grads)] = steps(model, count=1)
    assert model.training
    assert functions.narrow_output is not None
    assert grads["generator_lm_head.bias"].abs().sum() > 0


@pytest.mark.parametrize(
    "changes", [{"compile": False}, {"precision": "float32"}, {"loss_path": "model"}, {"device": "cuda"}]
)
def test_it_is_for_compiled_chunks_in_bfloat16_on_a_processor_alone(changes, build_model):
    chosen = replace(CHOICES, **changes)
    with computing_as(chosen):
        functions, _ = prepare_loss(build_model("llama"), chosen, 260, sequence_length=16)
    assert functions.narrow_output is None


class OwnLinear(nn.Linear):
    """Another class, whatever it does."""


def of_another_class(model):
    model.lm_head.__class__ = OwnLinear


def in_float32(model):
    """As a model that does not leave its logits to autocast."""
    plain = type(model).forward

    def forward(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return plain(self, *args, **kwargs)

    model.__class__ = type("InFloat32", (type(model),), {"forward": forward})


def by_a_scaled_matrix(model):
    """As a model that uses its matrix beside multiplying with it."""
    plain = type(model).forward

    def forward(self, *args, **kwargs):
        answer = plain(self, *args, **kwargs)
        answer.logits = answer.logits / self.lm_head.weight.norm()
        return answer

    model.__class__ = type("ByAScaledMatrix", (type(model),), {"forward": forward})


@pytest.mark.parametrize("change", [of_another_class, in_float32, by_a_scaled_matrix])
def test_a_head_that_does_anything_else_is_left_alone(change, build_model):
    model = build_model("llama")
    change(model)
    split = split_head(model)
    assert narrow_output(model, split) is None
    assert split.head.bodiless.lm_head is model.lm_head
