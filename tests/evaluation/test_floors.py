"""Floors come from the items: guessing, and one answer for all where the answers are the same words."""

import math

import pytest

from inheritune.evaluation import floors
from inheritune.evaluation.harness import Item
from inheritune.evaluation.scorer import Answer
from inheritune.evaluation.statistics import token_mean


def item(choices, target, metrics=None, answered=0, truths=()):
    answers = tuple(Answer(-1.0 if index == answered else -2.0, False) for index in range(len(choices)))
    return Item(
        "task", "d", "p", target, tuple(choices), answers, metrics or {"acc": float(answered == target)}, truths
    )


def test_chance_is_the_mean_over_items_of_one_in_so_many():
    items = [item("abcd", 0), item("abc", 1), item("ab", 1)]
    assert token_mean(floors.chance(items, "acc")) == pytest.approx((1 / 4 + 1 / 3 + 1 / 2) / 3)


def test_majority_is_the_commonest_answer_where_answers_are_the_same_words():
    items = [item(["no", "yes"], target) for target in (0, 1, 1, 1)]
    assert token_mean(floors.majority(items, "acc")) == 0.75


def test_a_place_is_no_answer():
    """BLiMP's good sentence always comes first; that helps no model, which sees one at a time."""
    items = [item([f"good {number}", f"bad {number}"], 0) for number in range(4)]
    assert floors.majority(items, "acc") is None
    assert token_mean(floors.chance(items, "acc")) == 0.5


def test_several_right_choices_raise_chance_and_have_no_majority():
    items = [item("abcd", 0, truths=(0, 1, 2)), item("abcd", 0, truths=(0,))]
    assert token_mean(floors.chance(items, "acc")) == 0.5
    assert floors.majority(items, "acc") is None


def test_of_one_continuation_guessing_gets_none_and_the_commonest_word_its_share():
    items = [item([word], word, {"acc": 0.0}) for word in ("the", "the", "king", "door")]
    assert token_mean(floors.chance(items, "acc")) == 0
    assert token_mean(floors.majority(items, "acc")) == 0.5


def test_bits_per_byte_are_eight_for_who_knows_nothing():
    items = [
        item(["text"], "text", {"bits_per_byte": (-80 * math.log(2), 20.0)}),
        item(["t"], "t", {"bits_per_byte": (0.0, 60.0)}),
    ]
    assert token_mean(floors.values(items, "bits_per_byte")) == pytest.approx(80 / 80)
    assert token_mean(floors.chance(items, "bits_per_byte")) == 8
    assert floors.majority(items, "bits_per_byte") is None


def test_an_unknown_metric_has_no_floor():
    items = [item("ab", 0, {"f1": 0.5})]
    assert floors.chance(items, "f1") is None
    assert floors.majority(items, "f1") is None


@pytest.mark.parametrize(("answered", "acc", "expected"), [(0, 1.0, 0), (0, 0.0, 1), (1, 1.0, 1), (1, 0.0, 0)])
def test_of_two_choices_the_right_one_is_known_from_the_answer(answered, acc, expected):
    assert floors.label(item(["a", "b"], "what follows both", {"acc": acc}, answered)) == expected


def test_of_three_it_is_not():
    assert floors.label(item(["a", "b", "c"], "what follows all", {"acc": 0.0})) is None
