import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.data.batches import Position
from inheritune.errors import RecipeError, Stopped
from inheritune.training import moments
from inheritune.training.checkpoint import State, load_checkpoint, save_checkpoint
from inheritune.training.moments import (
    BLOCK,
    MOMENT_BYTES,
    SMALLEST,
    STANDING,
    SmallAdamW,
    quantise_signed,
    quantise_squares,
    restore_signed,
    restore_squares,
)
from inheritune.training.optimiser import build_optimiser, set_learning_rate

SMALL = ["bfloat16", "8bit"]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Wide enough that its matrices have small moments."""


def values(seed, count, spread):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) * torch.exp(spread * torch.randn(count, generator=generator))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 1000), spread=st.floats(0, 3))
def test_signed_codes_are_within_a_step_of_the_value(seed, count, spread):
    value_N = values(seed, count, spread)
    codes_N, largest_K = quantise_signed(value_N)
    back_N = restore_signed(codes_N, largest_K)
    assert (codes_N.dtype, codes_N.shape, len(largest_K)) == (torch.int8, value_N.shape, -(-count // BLOCK))
    largest_N = largest_K.repeat_interleave(BLOCK)[:count]
    root_N = (value_N.abs() / largest_N).sqrt()
    allowed_N = largest_N * ((root_N + 0.5 / 127).square() - root_N.square()) * 1.001
    assert bool(((back_N - value_N).abs() <= allowed_N + 1e-12).all())
    assert bool((back_N * value_N >= 0).all())


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 1000), spread=st.floats(0, 3))
def test_squares_keep_their_size_and_never_become_nothing(seed, count, spread):
    value_N = values(seed, count, spread).square()
    back_N = restore_squares(*quantise_squares(value_N))
    assert bool((back_N[value_N > 0] > 0).all())
    largest_N = quantise_squares(value_N)[1].repeat_interleave(BLOCK)[:count]
    root_N, back_root_N = ((each / largest_N).sqrt().sqrt() for each in (value_N, back_N))
    assert bool(((back_root_N - root_N).abs() <= 1.001 / 255).all())


def test_zeros_stay_zeros():
    for quantise, restore in ((quantise_signed, restore_signed), (quantise_squares, restore_squares)):
        assert torch.equal(restore(*quantise(torch.zeros(300))), torch.zeros(300))


def test_a_weight_without_gradients_comes_to_rest_beside_busy_ones():
    """Its code of the first moment falls to nothing, though its block's largest value stays where it is."""
    weight = torch.nn.Parameter(torch.zeros(SMALLEST))
    optimiser = SmallAdamW([{"params": [weight], "weight_decay": 0.0}], betas=(0.9, 0.95), moments="8bit")
    optimiser.param_groups[0]["lr"] = 1e-3
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(200):
        weight.grad = torch.ones(SMALLEST) + 0.1 * torch.randn(SMALLEST, generator=generator)
        weight.grad[7::16] = 0.0 if step else 0.3
        optimiser.step()
        seen.append(weight.detach()[7::16].clone())
    assert (seen[0] < 0).all()
    assert torch.equal(seen[99], seen[199])


@given(seed=st.integers(0, 2**16), code=st.integers(1, 127))
def test_a_value_that_shrinks_by_a_tenth_has_another_code_and_the_nearest_from_ten_on(seed, code):
    before = restore_signed(torch.tensor([127, code, -code], dtype=torch.int8), torch.tensor([1.0 + seed]))
    after = before * torch.tensor([1.0, 0.9, 0.9])
    codes, _ = quantise_signed(after, before)
    nearest, _ = quantise_signed(after)
    assert abs(codes[1]) < code
    assert torch.equal(codes, nearest) or code <= STANDING
    assert codes[1] == -codes[2]


def train_a_little(model, optimiser, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = torch.randint(0, 256, (8, 33), generator=generator) % 16
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def optimiser_of(model, kind):
    optimiser = build_optimiser(model, weight_decay=0.1, beta2=0.95, moments=kind)
    set_learning_rate(optimiser, 1e-3)
    return optimiser


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_goes_as_with_wide_moments(kind, seed, build_model):
    ends = {}
    for each in ("float32", kind):
        model = build_model("llama", **WIDE).train()
        losses = train_a_little(model, optimiser_of(model, each), 60, seed)
        ends[each] = sum(losses[-10:]) / 10
        assert ends[each] < losses[0] - 0.5
    assert ends[kind] == pytest.approx(ends["float32"], abs=0.01)


@pytest.mark.parametrize("kind", SMALL)
def test_the_state_has_the_bytes_that_are_said(kind, build_model):
    model = build_model("llama", **WIDE)
    optimiser = optimiser_of(model, kind)
    train_a_little(model, optimiser, 1)
    held = sum(t.nbytes for state in optimiser.state.values() for name, t in state.items() if name != "step")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert held == pytest.approx(MOMENT_BYTES[kind] * parameters, rel=0.01)


@pytest.mark.parametrize("kind", SMALL)
def test_norms_keep_wide_moments(kind, build_model):
    model = build_model("llama", **WIDE)
    optimiser = optimiser_of(model, kind)
    train_a_little(model, optimiser, 1)
    dtypes = {name: optimiser.state[parameter]["exp_avg"].dtype for name, parameter in model.named_parameters()}
    assert dtypes["model.norm.weight"] == torch.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == {"bfloat16": torch.bfloat16, "8bit": torch.int8}[kind]


@pytest.mark.parametrize("kind", SMALL)
def test_slices_change_no_bit(kind, build_model, monkeypatch):
    weights = []
    for size in (2**24, 2 * BLOCK):
        monkeypatch.setattr(moments, "SLICE", size)
        model = build_model("llama", **WIDE)
        train_a_little(model, optimiser_of(model, kind), 5)
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("kind", SMALL)
def test_the_first_step_is_that_of_torch(kind, build_model):
    start = build_model("llama", **WIDE)
    ends = []
    for each in ("float32", kind):
        model = copy.deepcopy(start)
        train_a_little(model, optimiser_of(model, each), 1)
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        assert float((tensor - ends[1][name]).abs().max()) <= 1e-6, name


@pytest.mark.parametrize("kind", SMALL)
def test_a_checkpoint_gives_every_bit_back(kind, build_model, tmp_path):
    model = build_model("llama", **WIDE)
    optimiser = optimiser_of(model, kind)
    train_a_little(model, optimiser, 3)
    state = State(step=3, tokens=3, position=Position(0, 3), elapsed_s=0.0)
    folder = save_checkpoint(tmp_path, model, optimiser, state, keep=1)
    other = build_model("llama", **WIDE)
    again = optimiser_of(other, kind)
    load_checkpoint(folder, other, again)
    assert train_a_little(model, optimiser, 3, seed=1) == train_a_little(other, again, 3, seed=1)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        left, right = optimiser.state[one], again.state[two]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(kind, lab):
    settings = {"recipe": {"moments": kind}, "start": lab.start(**WIDE)}
    lab.run("whole", **settings)
    with pytest.raises(Stopped):
        lab.run("parts", stop=lab.StopAt(9), **settings)
    lab.run("parts", **settings)
    lab.assert_equal("whole", "parts")


@pytest.mark.parametrize("kind", SMALL)
def test_a_beta2_that_small_moments_cannot_follow_is_refused(kind, build_model):
    with pytest.raises(RecipeError, match=r"beta2 of 0\.999.*train\.moments: float32"):
        build_optimiser(build_model("llama", **WIDE), weight_decay=0.0, beta2=0.999, moments=kind)


# torch's own: its compiler imports a module of scripted methods where the processor has bfloat16 products
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", SMALL)
def test_a_compiled_step_is_the_plain_one_but_for_rounding(kind):
    ends = []
    for compiled in (False, True):
        weight = torch.nn.Parameter(values(0, 5000, 0.0).view(50, 100))
        optimiser = SmallAdamW(
            [{"params": [weight], "weight_decay": 0.1}], betas=(0.9, 0.95), moments=kind, compiled=compiled
        )
        for step in range(3):
            optimiser.param_groups[0]["lr"] = 1e-2 / (1 + step)
            weight.grad = values(step + 1, 5000, 1.0).view(50, 100)
            optimiser.step()
        ends.append(weight.detach().clone())
    assert float((ends[0] - ends[1]).abs().max()) < 2e-4
