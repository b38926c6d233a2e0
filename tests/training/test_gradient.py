"""Loss and gradient are those of the plain model, whatever is split, chunked, compiled or taught."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.utils import run_fw_bw_and_get_code

from inheritune.errors import RecipeError
from inheritune.machine import probe
from inheritune.machine.probe import Choices, autocast, computing_as
from inheritune.training import gradient
from inheritune.training.gradient import (
    accumulate_gradient,
    checkpoint_activations,
    even_chunk,
    prepare_loss,
    sum_cross_entropy,
)
from inheritune.training.optimiser import freeze, set_dropout

BFLOAT16_ROUNDING = 2**-7
"""One step of bfloat16's 8 bits of mantissa: hidden states and their gradients are rounded to it, chunk by chunk."""


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
    losses, gradients = taught(model, None, rows, chosen)
    assert losses.distill_nats is None
    return losses.token_nats, gradients


def taught(model, teacher, rows, chosen, **settings):
    model.zero_grad(set_to_none=True)
    functions, taken = prepare_loss(model, chosen, vocabulary_size=260, sequence_length=97, teacher=teacher, **settings)
    losses = accumulate_gradient(functions, rows, taken)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_taught(model, teacher, rows, chosen, *, distill_weight, distill_temperature):
    """The whole batch at once, by the definition: token loss, divergence, gradient."""
    model.zero_grad(set_to_none=True)
    with autocast(chosen):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        with torch.no_grad():
            taught_logits = teacher.eval()(input_ids=rows[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    token = F.cross_entropy(logits, rows[:, 1:].flatten())
    log_child = (logits / distill_temperature).log_softmax(dim=-1)
    log_taught = (taught_logits / distill_temperature).log_softmax(dim=-1)
    divergence = (log_taught.exp() * (log_taught - log_child)).sum(dim=-1).mean()
    ((1 - distill_weight) * token + distill_weight * distill_temperature**2 * divergence).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(token.detach()), float(divergence.detach()), gradients


@pytest.fixture
def pair(build_model):
    """``pair(family) -> (child, teacher)``: the teacher is deeper and has weights of its own."""

    def pair(family):
        child, teacher = build_model(family), build_model(family, num_hidden_layers=6)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return child.train(), teacher

    return pair


def assert_same(expected, got, tolerance=1e-5, smallest=1e-6):
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    assert expected[1].keys() == got[1].keys()
    for name, grad in expected[1].items():
        scale = max(float(grad.abs().max()), smallest)
        assert float((got[1][name] - grad).abs().max()) <= tolerance * scale, name


def test_loss_and_gradient_are_those_of_the_plain_model(family, build_model):
    model = build_model(family).train()
    set_dropout(model, 0.0)
    assert_same(plain_loss_and_gradient(model, some_rows()), ours(model, some_rows(), choices()))


@pytest.mark.reliability("R8")
@pytest.mark.parametrize("accumulation", [4, 8])
@pytest.mark.parametrize("distill_weight", [0.0, 0.5])
def test_accumulation_changes_nothing_though_the_last_micro_batch_is_ragged(accumulation, distill_weight, pair):
    child, teacher = pair("llama")
    rows = some_rows(count=15)
    micro_batch = -(-len(rows) // accumulation)
    assert len(rows) % micro_batch and -(-len(rows) // micro_batch) == accumulation
    whole, expected = taught(child, teacher, rows, choices(len(rows)), distill_weight=distill_weight)
    losses, got = taught(child, teacher, rows, choices(micro_batch), distill_weight=distill_weight)
    assert losses.token_nats == pytest.approx(whole.token_nats, abs=1e-6)
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():
        assert float((got[name] - grad).abs().max()) <= 1e-6 * largest, name


@pytest.mark.reliability("R9")
def test_chunks_of_the_head_change_nothing(build_model, monkeypatch):
    model = build_model("gemma2")
    whole = ours(model, some_rows(), choices())
    monkeypatch.setattr(gradient, "LOGITS_AT_ONCE", {"cpu": 260 * 13})
    assert_same(whole, ours(model, some_rows(), choices()))


@pytest.mark.parametrize(
    ("total", "most", "size"), [(4096, 524, 512), (4096, 333, 256), (300, 524, 300), (1021, 500, 341), (7, 1, 1)]
)
def test_chunks_are_of_one_size_where_one_divides_the_positions(total, most, size):
    assert even_chunk(total, most) == size


@pytest.mark.parametrize(
    ("device", "compiled", "vocabulary", "positions"),
    [
        ("cpu", False, 32_000, 524),
        ("cpu", False, 128_000, 131),
        ("cpu", True, 32_000, 524),
        ("cpu", True, 128_000, 512),
        ("cuda", False, 32_000, 2097),
        ("cuda", True, 32_000, 8388),
    ],
)
def test_a_compiled_chunk_is_of_512_positions_at_least(device, compiled, vocabulary, positions):
    chosen = Choices(device, "float32", compile=compiled, micro_batch=1, threads=1, deterministic=True)
    assert gradient._positions_at_once(chosen, vocabulary) == positions


@given(total=st.integers(1, 5000), most=st.integers(1, 5000))
def test_a_chunk_is_never_too_large_and_never_below_half_for_nothing(total, most):
    size = even_chunk(total, most)
    assert 1 <= size <= most
    assert 2 * size >= min(total, most) or total % size == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_joined_loss_is_the_cross_entropy_and_its_gradient(dtype):
    generator = torch.Generator().manual_seed(5)
    logits = (8 * torch.randn(40, 300, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, 300, (40,), generator=generator)
    results = []
    for loss_of in (sum_cross_entropy, lambda x, y: F.cross_entropy(x.float(), y, reduction="sum")):
        loss = loss_of(logits, targets)
        results.append([loss.detach(), *torch.autograd.grad(0.25 * loss, logits)])
    (loss, gradient_NV), (expected_loss, expected_NV) = results
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert gradient_NV.dtype == dtype
    assert float((gradient_NV - expected_NV).abs().max()) <= (1e-6 if dtype == torch.float32 else 2**-9)


def test_the_compiled_gradient_is_written_over_the_logits():
    hidden_ND, output_VD = torch.randn(24, 16, requires_grad=True), torch.randn(320, 16, requires_grad=True)
    targets_N = torch.randint(0, 320, (24,))

    def loss(hidden_ND, output_VD):
        return sum_cross_entropy(hidden_ND.bfloat16() @ output_VD.bfloat16().T, targets_N)

    with computing_as(choices(compile=True)):
        _, (forward, backward) = run_fw_bw_and_get_code(lambda: torch.compile(loss)(hidden_ND, output_VD))
    logits = "empty_strided_cpu((24, 320)"
    assert logits in forward
    assert logits not in backward


@pytest.mark.reliability("R10")
def test_compiled_paths_have_loss_and_gradient_of_the_plain_model(family, build_model, full):
    if family not in ("llama", "gpt2", "gemma2", "cohere") and not full:
        pytest.skip("compiled families beyond four: in the long form")
    model = build_model(family).train()
    set_dropout(model, 0.0)
    rows = some_rows(length=97)  # two blocks of queries
    expected = plain_loss_and_gradient(model, rows)
    fast = choices(compile=True, attention="blocks")
    with computing_as(fast):
        assert_same(expected, ours(model, rows, fast), smallest=1e-4)  # OPT's biases of keys have none


def test_what_a_process_compiled_before_does_not_leave_a_shape_uncompiled(build_model):
    """Uncompiled it would have other bits than in a process that was just resumed."""
    fast, compiler = choices(compile=True), torch._dynamo.config
    with compiler.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        with computing_as(fast):
            for length in (65, 33):
                losses, _ = ours(build_model("llama").train(), some_rows(length=length), fast)
                assert losses == pytest.approx(math.log(260), abs=0.2)
        assert compiler.recompile_limit == 1


def test_compiled_layers_keep_little_and_it_changes_no_bit(build_model, monkeypatch):
    rows, fast = some_rows(length=97), choices(compile=True, attention="blocks", precision="bfloat16")
    results = []
    for recomputes in (frozenset(), probe.RECOMPUTES):
        monkeypatch.setattr(probe, "RECOMPUTES", recomputes)
        torch.compiler.reset()  # what is compiled is reused, however it was partitioned
        model, kept = build_model("llama", hidden_size=64).train(), {}
        set_dropout(model, 0.0)

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with computing_as(fast):
            functions, chosen = prepare_loss(model, fast, 260, sequence_length=96)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                losses = accumulate_gradient(functions, rows, chosen)
        weights = sum(each.nbytes for each in model.parameters())
        results.append((losses, {name: p.grad for name, p in model.named_parameters()}, sum(kept.values()) - weights))
    (expected, gradients, many), (losses, again, few) = results
    assert losses == expected
    assert again.keys() == gradients.keys()
    assert all(torch.equal(again[name], gradients[name]) for name in gradients)
    assert few < 0.8 * many


def test_activations_that_are_computed_again_change_no_bit(family, build_model):
    model = build_model(family).train()
    set_dropout(model, 0.0 if family == "mamba" else 0.1)
    torch.manual_seed(7)
    loss, expected = ours(model, some_rows(), choices(4))
    checkpoint_activations(model)
    torch.manual_seed(7)
    again, got = ours(model, some_rows(), choices(4))
    assert again == loss
    assert all(torch.equal(got[name], grad) for name, grad in expected.items())


def test_activations_that_are_computed_again_are_not_kept(build_model):
    model = build_model("llama", num_hidden_layers=8).train()

    def kept_bytes():
        kept = []

        def keep(tensor):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.model(input_ids=some_rows()[:, :-1], use_cache=False)
        return sum(kept)

    before = kept_bytes()
    checkpoint_activations(model)
    assert kept_bytes() < before / 4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_layers_are_computed_again_from_any_step_on(family, build_model):
    """As when memory runs out in the middle of a compiled run."""
    model = build_model(family, num_hidden_layers=8).train()
    set_dropout(model, 0.0)
    rows, fast = some_rows(length=97), choices(compile=True, attention="blocks")

    def step():
        kept = []

        def keep(tensor):
            kept.append(tensor.nbytes)
            return tensor

        model.zero_grad(set_to_none=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = accumulate_gradient(functions, rows, chosen)
        return losses.token_nats, {name: each.grad.clone() for name, each in model.named_parameters()}, sum(kept)

    with computing_as(fast):
        functions, chosen = prepare_loss(model, fast, 320, sequence_length=96)
        loss, expected, kept_before = step()
        checkpoint_activations(model)
        again, got, kept_after = step()
    assert again == pytest.approx(loss, abs=1e-6)
    for name, wanted in expected.items():
        assert torch.allclose(got[name], wanted, rtol=1e-4, atol=1e-6), name
    assert kept_after < 0.7 * kept_before


def test_a_model_whose_layers_cannot_be_computed_again_is_refused(build_model, monkeypatch):
    model = build_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match=r"activation_checkpointing: a llama has no layers.*micro_batch"):
        checkpoint_activations(model)


def test_a_model_that_cannot_be_split_trains_by_its_own_forward(build_model, monkeypatch):
    model = build_model("llama")
    split = ours(model, some_rows(), choices())
    monkeypatch.setattr(gradient, "split_head", lambda model: None)
    functions, taken = prepare_loss(model, choices(), vocabulary_size=260, sequence_length=97)
    assert taken.loss_path == "model"
    model.zero_grad(set_to_none=True)
    loss = accumulate_gradient(functions, some_rows(), taken).token_nats
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_same(split, (loss, grads))


def test_bfloat16_stays_near_float32(build_model):
    model = build_model("llama")
    exact, _ = ours(model, some_rows(), choices())
    rough, _ = ours(model, some_rows(), choices(precision="bfloat16"))
    assert rough == pytest.approx(exact, rel=0.02)  # 8 bits of mantissa
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.reliability("R9")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("distill_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("distill_temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk", [13, 64, 10_000])
def test_hard_soft_and_mixed_targets_have_the_gradient_of_their_definition(
    family, distill_weight, distill_temperature, chunk, pair, monkeypatch
):
    monkeypatch.setattr(gradient, "LOGITS_AT_ONCE", {"cpu": 2 * 260 * chunk})
    child, teacher = pair(family)
    settings = {"distill_weight": distill_weight, "distill_temperature": distill_temperature}
    token_nats, distill_nats, expected = plain_taught(child, teacher, some_rows(), choices(), **settings)
    losses, got = taught(child, teacher, some_rows(), choices(3), **settings)
    assert_same((token_nats, expected), (losses.token_nats, got))
    if distill_weight:
        assert losses.distill_nats == pytest.approx(distill_nats, rel=1e-5)


@pytest.mark.reliability("R9")
@pytest.mark.parametrize("distill_weight", [0.0, 0.3, 1.0])
def test_chunks_in_bfloat16_have_the_gradient_of_their_definition(distill_weight, pair, monkeypatch):
    monkeypatch.setattr(gradient, "LOGITS_AT_ONCE", {"cpu": 2 * 260 * 13})
    child, teacher = pair("llama")
    rough = choices(precision="bfloat16")
    settings = {"distill_weight": distill_weight, "distill_temperature": 2.0}
    token_nats, _, expected = plain_taught(child, teacher, some_rows(), rough, **settings)
    losses, got = taught(child, teacher, some_rows(), rough, **settings)
    assert_same((token_nats, expected), (losses.token_nats, got), tolerance=BFLOAT16_ROUNDING)


@pytest.mark.parametrize("unsplit", ["child", "teacher", "both"])
def test_models_that_cannot_be_split_are_taught_by_their_own_forward(unsplit, pair, monkeypatch):
    child, teacher = pair("llama")
    settings = {"distill_weight": 0.3, "distill_temperature": 2.0}
    expected = taught(child, teacher, some_rows(), choices(3), **settings)
    honest, refused = gradient.split_head, {"child": [child], "teacher": [teacher], "both": [child, teacher]}[unsplit]
    monkeypatch.setattr(gradient, "split_head", lambda m: None if any(m is each for each in refused) else honest(m))
    got = taught(child, teacher, some_rows(), choices(3), **settings)
    assert_same((expected[0].token_nats, expected[1]), (got[0].token_nats, got[1]))
    assert got[0].distill_nats == pytest.approx(expected[0].distill_nats, rel=1e-5)


def test_a_teacher_without_weight_costs_nothing_and_changes_no_bit(pair, monkeypatch):
    child, teacher = pair("llama")
    monkeypatch.setattr(teacher, "forward", lambda *args, **kwargs: pytest.fail("the teacher was run"))
    alone = taught(child, None, some_rows(), choices(3), distill_weight=0.5)
    beside = taught(child, teacher, some_rows(), choices(3), distill_weight=0.0)
    assert beside[0] == alone[0]
    assert all(torch.equal(beside[1][name], grad) for name, grad in alone[1].items())


def test_the_teacher_is_in_evaluation_mode_and_gets_no_gradient(pair):
    child, teacher = pair("gpt2")
    set_dropout(teacher.train(), 0.5)
    losses = [taught(child, teacher, some_rows(), choices(), distill_weight=1.0)[0] for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_child_taught_by_its_equal_has_nothing_to_learn(build_model):
    losses, gradients = taught(
        build_model("llama"), build_model("llama"), some_rows(), choices(), distill_weight=1.0, distill_temperature=2.0
    )
    assert losses.distill_nats == pytest.approx(0, abs=1e-6)
    assert all(float(grad.abs().max()) < 1e-6 for grad in gradients.values())


def test_a_teacher_of_another_vocabulary_is_refused(build_model):
    with pytest.raises(RecipeError, match=r"300 rows and the child one of 260.*distill_weight: 0"):
        taught(build_model("llama"), build_model("llama", vocab_size=300), some_rows(), choices(), distill_weight=0.5)


@pytest.mark.parametrize("patterns", [["model.*"], ["lm_head.*"], ["model.embed_tokens.*", "*.layers.0.*"]])
@pytest.mark.parametrize("distill_weight", [0.0, 0.5])
@pytest.mark.parametrize("path", ["split", "model"])
def test_frozen_parts_get_no_gradient_and_the_others_keep_theirs(patterns, distill_weight, path, pair):
    child, teacher = pair("llama")
    chosen = choices(3, loss_path=path)
    _, whole = taught(child, teacher, some_rows(), chosen, distill_weight=distill_weight)
    frozen = freeze(child, patterns)
    _, part = taught(child, teacher, some_rows(), chosen, distill_weight=distill_weight)
    assert part.keys() == whole.keys() - set(frozen)
    assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.mark.reliability("R10")
@pytest.mark.parametrize("distill_weight", [0.0, 0.5])
def test_fifty_compiled_steps_lose_what_fifty_plain_ones_lose(distill_weight, pair):
    def losses_of_fifty_steps(chosen):
        child, teacher = pair("qwen3")
        optimiser = torch.optim.AdamW(child.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(4)
        losses = []
        with computing_as(chosen):
            functions, taken = prepare_loss(
                child,
                chosen,
                260,
                sequence_length=32,
                teacher=teacher,
                distill_weight=distill_weight,
                distill_temperature=2.0,
            )
            for _ in range(50):
                rows = torch.randint(0, 256, (8, 33), generator=generator) % 16
                optimiser.zero_grad(set_to_none=True)
                step = accumulate_gradient(functions, rows, taken)
                losses += [step.token_nats, *([step.distill_nats] if distill_weight else [])]
                torch.nn.utils.clip_grad_norm_(child.parameters(), 1.0)
                optimiser.step()
        return losses

    plain = losses_of_fifty_steps(choices(8, threads=1))
    compiled = losses_of_fifty_steps(choices(8, threads=1, compile=True))
    assert plain[-2] < plain[0] - 0.5
    assert compiled == pytest.approx(plain, abs=1e-4)
