"""The first module that gives NaN is named, whatever stands behind it."""

import math

import numpy as np
import pytest
import torch

from inheritune.errors import EvaluationError
from inheritune.evaluation.damage import first_damage, said_of_damage
from inheritune.evaluation.token_loss import score_documents


def test_the_first_damaged_module_is_named(family, build_model):
    model = build_model(family)
    assert first_damage(model) is None
    name, weights = next((name, each) for name, each in model.named_parameters() if ".2." in name and each.dim() == 2)
    with torch.no_grad():
        weights.fill_(math.nan)
    found = first_damage(model)
    assert ".2." in found
    assert name.startswith(found) or family in ("mamba", "qwen3_moe")  # whose weights are used by a module around them
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_names_the_layer(build_model):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = math.inf
    with pytest.raises(
        EvaluationError, match=r"document 0 is not finite\. Values stop being finite in model\.layers\.1"
    ):
        score_documents(model, [np.array([256, 1, 2, 3])], sequence_length=8)


def test_what_is_said_of_a_whole_model(build_model):
    assert "another text" in said_of_damage(build_model("llama"))
