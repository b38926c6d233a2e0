"""Two engines on the same items: what differs is found, and a tie is no fault."""

from dataclasses import replace

import pytest

from inheritune.errors import EvaluationError
from inheritune.evaluation.agreement import agreement
from inheritune.evaluation.harness import Item, Run
from inheritune.evaluation.scorer import Answer, Tally


def run(*answers, prompt="p"):
    items = tuple(
        Item(
            "task",
            f"document {number}",
            prompt,
            0,
            tuple("abcd"[: len(each)]),
            tuple(Answer(x, False) for x in each),
            {},
        )
        for number, each in enumerate(answers)
    )
    return Run({"task": items}, Tally(), {})


def test_the_same_is_the_same():
    found = agreement(run((-1.0, -2.0)), run((-1.0, -2.00005)))
    assert found.same_answers == found.items == 1
    assert found.continuations == 2
    assert found.largest_difference_nats == pytest.approx(5e-5)
    assert found.largest_relative_difference == pytest.approx(5e-5 / 2.00005)
    assert found.holds


def test_another_answer_is_listed_with_its_gap():
    found = agreement(run((-1.0, -2.0), (-3.0, -2.0)), run((-1.0, -2.0), (-2.0, -2.5)))
    (each,) = found.disagreements
    assert each.document == "document 1"
    assert each.gap_nats == pytest.approx(0.5)
    assert not found.holds
    assert "document 1" in found.table()


def test_a_tie_may_fall_either_way():
    assert agreement(run((-1.0, -1.00001)), run((-1.00001, -1.0))).holds


def test_greediness_of_a_single_continuation_counts():
    mine, theirs = run((-1.0,)), run((-1.0,))
    (item,) = theirs.items["task"]
    other = Run({"task": (replace(item, answers=(Answer(-1.0, True),)),)}, Tally(), {})
    assert agreement(mine, theirs).holds
    assert not agreement(mine, other).holds


def test_other_questions_are_an_error():
    with pytest.raises(EvaluationError, match="asked different things"):
        agreement(run((-1.0, -2.0)), run((-1.0, -2.0), prompt="q"))
