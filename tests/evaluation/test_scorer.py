"""The fast scorer gives the log-probabilities of the model's own forward pass, whatever it shares or puts together."""

import math

import pytest
import torch

from inheritune.errors import EvaluationError
from inheritune.evaluation import scorer as scorer_module
from inheritune.evaluation.scorer import Scorer

WINDOW = 128

SIZES = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
WINDOWED = {**SIZES, "sliding_window": 40}
HYBRID = {
    **SIZES, "head_dim": 12, "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_n_groups": 1,
    "mamba_d_state": 8, "mamba_chunk_size": 16,
}  # fmt: skip


def ids(seed, length):
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def few_shot_pairs():
    """Two subjects with examples in common, three questions each, letters and longer answers; and lone ones."""
    pairs = []
    for subject in range(2):
        shots = ids(subject, 45)
        for question in range(3):
            context = shots + ids(10 + 3 * subject + question, 9 + 5 * question)
            pairs += [(context, [letter]) for letter in (1, 2, 3, 4)]
            pairs += [(context, ids(30 + answer, 3 + answer)) for answer in range(3)]
    pairs += [(ids(50 + length, length), ids(60, 4)) for length in (1, 2, 8, 9, 17, 64)]
    return pairs


def by_hand(model, pair):
    """The definition: all logits of the whole text, log-softmax, the continuation's entries."""
    context, continuation = pair
    text = torch.tensor(context + continuation)
    with torch.no_grad():
        logits = model(input_ids=text[None, :-1], use_cache=False).logits[0, len(context) - 1 :]
    wanted = text[len(context) :]
    found = logits.double().log_softmax(-1).gather(-1, wanted[:, None])
    return found.sum().item(), bool((logits.argmax(-1) == wanted).all())


def test_answers_are_those_of_the_model_s_own_forward(family, build_model):
    model, pairs = build_model(family), few_shot_pairs()
    for answer, pair in zip(Scorer(model, window=WINDOW).score(pairs), pairs, strict=True):
        log_probability, is_greedy = by_hand(model, pair)
        assert answer.log_probability == pytest.approx(log_probability, abs=1e-4)
        assert answer.is_greedy == is_greedy


def test_what_can_be_shared_is_shared(family, build_model):
    """Two subjects' examples once, four letters in one input, longer answers as branches of their context."""
    scorer = Scorer(build_model(family), window=WINDOW)
    scorer.score(few_shot_pairs())
    tally = scorer.tally
    assert tally.pairs == len(few_shot_pairs())
    recurrent, windowed = family == "mamba", family in ("gemma2", "gemma3_text")
    assert tally.branches == (not recurrent and not windowed)  # a window of 8 is by place in the row
    assert tally.trunks == (not recurrent)
    if tally.branches:
        assert tally.computed_positions < 0.25 * tally.pairs_positions


def test_a_greedy_continuation_is_known_as_one(build_model):
    model, context = build_model("llama"), ids(0, 20)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([context])).logits[0, -1].argmax().item()
    right, wrong = Scorer(model, window=WINDOW).score([(context, [best]), (context, [(best + 1) % 256])])
    assert right.is_greedy
    assert not wrong.is_greedy
    assert right.log_probability > wrong.log_probability


def test_batches_of_any_size_give_the_same(build_model):
    model, pairs = build_model("gpt2"), few_shot_pairs()
    whole = [answer.log_probability for answer in Scorer(model, window=WINDOW).score(pairs)]
    for tokens_at_once in (1, 150, 400):
        again = Scorer(model, window=WINDOW, tokens_at_once=tokens_at_once).score(pairs)
        assert [answer.log_probability for answer in again] == pytest.approx(whole, abs=1e-4)


def test_a_long_context_keeps_its_end_and_is_counted(build_model):
    model, context, continuation = build_model("llama"), ids(0, 60), ids(1, 5)
    scorer = Scorer(model, window=32)
    (answer,) = scorer.score([(context, continuation)])
    assert answer.log_probability == pytest.approx(by_hand(model, (context[-28:], continuation))[0], abs=1e-4)
    assert scorer.tally.cut_pairs == 1


def test_a_continuation_longer_than_the_window_is_scored_in_pieces(build_model):
    model, context, continuation = build_model("llama"), ids(0, 20), ids(1, 50)
    scorer = Scorer(model, window=32)
    (answer,) = scorer.score([(context, continuation)])
    whole, parts = context + continuation, [(20, 36), (36, 52), (52, 68), (68, 70)]
    by_parts = [by_hand(model, (whole[begin - 16 : begin], whole[begin:end]))[0] for begin, end in parts]
    assert answer.log_probability == pytest.approx(sum(by_parts), abs=1e-4)
    assert scorer.tally.pieced_pairs == 1


def test_a_model_whose_head_cannot_be_split_is_scored_by_its_own_logits(build_model, monkeypatch):
    monkeypatch.setattr(scorer_module, "split_head", lambda model: None)
    model, pairs = build_model("llama"), few_shot_pairs()[:9]
    for answer, pair in zip(Scorer(model, window=WINDOW).score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)


def test_a_cache_that_lies_is_not_used(build_model, monkeypatch):
    def forgetful(self, trunk):
        return fill(self, [(each + 1) % 256 for each in trunk])

    fill = Scorer._fill
    monkeypatch.setattr(Scorer, "_fill", forgetful)
    model, pairs = build_model("llama"), few_shot_pairs()
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert (scorer.tally.branches, scorer.tally.trunks) == (True, False)


def test_a_cache_that_is_not_repeated_for_every_row_is_not_used(build_model):
    """Falcon-H1's layers repeat keys and values and forget their states, which a single row would not tell."""
    model, pairs = build_model("falcon_h1", **HYBRID), few_shot_pairs()
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert scorer.tally.trunks is False


def branching(context, seed, count):
    return [(context, ids(seed + answer, 3)) for answer in range(count)]


def test_a_window_is_tried_on_the_longest_input_and_not_on_the_longest_row(build_model):
    model = build_model("mistral", **WINDOWED)
    many_short, few_long = branching(ids(0, 20), 10, 40), branching(ids(1, 60), 60, 2)
    pairs = many_short + few_long
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert scorer.tally.branches is False


def test_branches_are_tried_again_where_longer_inputs_come(build_model):
    model = build_model("mistral", **WINDOWED)
    scorer = Scorer(model, window=WINDOW)
    scorer.score(branching(ids(0, 20), 10, 20))
    assert scorer.tally.branches
    for pairs in (branching(ids(1, 15), 70, 3), branching(ids(1, 60), 40, 2)):
        for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
            assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert scorer.tally.branches is False


def test_an_input_without_branches_keeps_its_window_beside_those_with(build_model):
    model = build_model("mistral", **WINDOWED)
    pairs = [*branching(ids(0, 20), 10, 12), (ids(1, 60), ids(2, 3))]
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert scorer.tally.branches


def test_a_mask_that_is_not_heeded_is_not_used(build_model, monkeypatch):
    model, pairs = build_model("llama"), few_shot_pairs()
    monkeypatch.setattr(scorer_module, "_mask", lambda branches_BT, trunk, dtype: None)
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert (scorer.tally.branches, scorer.tally.trunks) == (False, True)


def test_batches_shrink_where_memory_runs_out(build_model, monkeypatch):
    run, sizes = Scorer._run, []

    def tight(self, batch):
        if len(batch.requests) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(batch.requests))
        return run(self, batch)

    monkeypatch.setattr(Scorer, "_is_same", lambda self, shared, plain: True)

    model, pairs = build_model("llama"), few_shot_pairs()
    scorer = Scorer(model, window=WINDOW)
    monkeypatch.setattr(Scorer, "_run", tight)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert max(sizes) == 2


def test_a_trial_without_memory_is_no_verdict_on_the_model(build_model, monkeypatch):
    """What fails for want of memory is not used this time, and not called a fault of the model."""
    run = Scorer._run

    def tight(self, batch):
        if batch.trunk or any(len(row) > 1 for row in batch.rows):
            raise torch.OutOfMemoryError("no room")
        return run(self, batch)

    model, pairs = build_model("llama"), few_shot_pairs()
    scorer = Scorer(model, window=WINDOW)
    monkeypatch.setattr(Scorer, "_run", tight)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert (scorer.tally.branches, scorer.tally.trunks, scorer.tally.untried) == (None, None, True)


def test_one_input_that_does_not_fit_is_an_error(build_model, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("no room")

    scorer = Scorer(build_model("llama"), window=WINDOW)
    monkeypatch.setattr(Scorer, "_run", full)
    with pytest.raises(EvaluationError, match="not enough memory to score one input of 23 tokens"):
        scorer.score([(ids(0, 20), ids(1, 4))])


def test_another_error_is_not_taken_for_memory(build_model, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes differ")

    scorer = Scorer(build_model("llama"), window=WINDOW)
    monkeypatch.setattr(Scorer, "_run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        scorer.score([(ids(0, 20), ids(1, 4))])


def test_logits_of_all_positions_bound_a_pass_where_the_head_does_not_split(build_model, monkeypatch):
    monkeypatch.setattr(scorer_module, "split_head", lambda model: None)
    monkeypatch.setattr(scorer_module, "LOGITS_AT_ONCE", 100 * 320)
    sizes, states = [], Scorer._states

    def measured(self, rows, begin, trunk):
        found = states(self, rows, begin, trunk)
        sizes.append(found.shape[:2].numel())
        return found

    monkeypatch.setattr(Scorer, "_states", measured)
    model, pairs = build_model("mistral", **SIZES), few_shot_pairs()
    scorer = Scorer(model, window=WINDOW)
    for answer, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert answer.log_probability == pytest.approx(by_hand(model, pair)[0], abs=1e-4)
    assert len(sizes) > 5
    assert max(sizes) <= 100


def test_nothing_asked_is_nothing_answered(build_model):
    assert Scorer(build_model("llama"), window=WINDOW).score([]) == []


def test_a_damaged_layer_is_named(build_model):
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 5] = math.nan
    with pytest.raises(EvaluationError, match=r"model\.layers\.2\.mlp"):
        Scorer(model, window=WINDOW).score([(ids(0, 20), ids(1, 4))])


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (([], [1]), "pair 0 has an empty context"),
        (([1], []), "pair 0 has an empty continuation"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(build_model, pair, said):
    with pytest.raises(EvaluationError, match=said):
        Scorer(build_model("llama"), window=32).score([pair])
