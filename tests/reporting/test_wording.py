import math

import pytest

from inheritune.reporting import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (1_230_000, "1.23M"),
        (999_999, "1.00M"),
        (2.5e9, "2.50B"),
        (3e12, "3.00T"),
    ],
)
def test_count_has_three_digits_and_a_letter(value, text):
    assert wording.count(value) == text


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, [1]])
def test_what_is_no_finite_number_is_said_to_be_not_recorded(value):
    for word in (wording.count, wording.nats, wording.difference, wording.share, wording.duration, wording.perplexity):
        assert word(value) == "not recorded"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.23, "1.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (8640, "2 h 24 min"),
        (97200, "1 d 03 h"),
    ],
)
def test_duration_names_its_two_largest_units(seconds, text):
    assert wording.duration(seconds) == text


def test_difference_is_signed_and_zero_has_no_sign():
    assert wording.difference(0.00412) == "+0.0041"
    assert wording.difference(-0.31) == "-0.3100"
    assert wording.difference(-0.00001) == "0.0000"


def test_layer_ranges_join_neighbours_and_show_repeats():
    assert wording.layer_ranges([0, 1, 2, 7, 7]) == "0-2, 7, 7"


def test_facts_keep_every_leaf_of_a_nested_value():
    value = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}], "f": True, "g": {}}
    assert wording.facts(value) == [
        ("a.b", "1"),
        ("a.c", "1, 2"),
        ("d[0].e", "not recorded"),
        ("f", "yes"),
        ("g", "none"),
    ]
