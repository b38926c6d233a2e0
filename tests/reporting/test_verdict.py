import pytest

from inheritune.reporting.record import read_run
from inheritune.reporting.verdict import gap_closed, verdict_mark, verdict_sentences


@pytest.mark.parametrize(
    ("state", "begin"),
    [
        ("better", "Better than the reference"),
        ("parity", "Parity with the reference"),
        ("not shown", "Parity is not shown"),
    ],
)
def test_three_sentences_say_verdict_size_and_baseline_with_intervals_and_seeds(make_run, state, begin):
    summary = read_run(make_run(state)).summary
    first, second, third = verdict_sentences(summary)
    assert first.startswith(begin)
    assert "95 % interval" in first and "1 seed" in first and "nats" in first
    assert (
        "6 of 8 layers" in second
        and "1.66M of 2.10M parameters (79 %)" in second
        and "2 rounds that cost 10.0M tokens and 2 min 24 s" in second
    )
    assert third.startswith("It is better than") and "-0.3300 to -0.2900" in third
    assert verdict_mark(summary) == state


def test_a_stopped_run_has_no_verdict_even_where_a_round_was_decided(make_run):
    summary = dict(read_run(make_run("parity")).summary) | {"state": "stopped"}
    assert verdict_mark(summary) == "unfinished"
    assert verdict_sentences(summary)[0].startswith("The run has not come to its end, so this is not the last word.")


def test_an_empty_summary_still_gives_three_honest_sentences():
    first, second, third = verdict_sentences({})
    assert "no verdict yet" in first and "no size" in second and "no finished baseline" in third


def test_a_finished_run_without_an_interval_claims_nothing(make_run):
    summary = dict(read_run(make_run("not shown")).summary) | {"against": {}}
    assert verdict_sentences(summary)[0].startswith("No verdict")


def test_an_interval_within_the_margin_but_without_parity_is_not_blamed_on_the_margin(make_run):
    summary = dict(read_run(make_run("parity")).summary) | {"verdict": "not shown"}
    assert "given no verdict" in verdict_sentences(summary)[0]


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.1, 0.2, "It is worse than"), (-0.1, 0.1, "It cannot be told apart from")]
)
def test_the_baseline_sentence_follows_its_interval(low, high, words):
    against = {"scratch": {"mean": (low + high) / 2, "low": low, "high": high, "seeds": 3}}
    sentence = verdict_sentences({"against": against})[2]
    assert sentence.startswith(words) and "3 seeds" in sentence


def test_gap_closed_is_computed_where_it_was_not_written():
    child = {"start_watch_loss_nats": 4.0, "watch_loss_nats": 2.5}
    assert gap_closed({"child": child, "reference": {"watch_loss_nats": 2.0}}) == pytest.approx(0.75)
    assert gap_closed({"child": child}) is None


def test_a_target_given_as_a_number_is_not_called_the_reference(make_run):
    summary = dict(read_run(make_run("parity")).summary) | {"target": 1.9}
    against = {**summary["against"], "target": {"mean": -0.036, "low": -0.05, "high": -0.02, "seeds": 1}}
    summary |= {"against": against}
    assert verdict_sentences(summary)[0].startswith("Parity with the target")
    assert "-0.0360" in verdict_sentences(summary)[0]
    assert "the target's 1.900" in verdict_sentences(summary)[0]


def test_under_thirty_documents_the_first_sentence_gives_no_verdict(make_run):
    summary = read_run(make_run("not shown")).summary
    few = dict(summary) | {"validation": {**summary["validation"], "documents": 12}}
    first = verdict_sentences(few)[0]
    assert first.startswith("No verdict: the child's validation loss is")
    assert "over 12 documents, where 30 are needed" in first
