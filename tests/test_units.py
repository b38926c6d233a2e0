"""Quantities are read exactly, and what is printed can be typed back in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import RecipeError
from inheritune.units import MAX_QUANTITY, format_bytes, format_count, format_duration, parse_fraction, parse_quantity


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1B", 10**9),
        ("131k", 131_000),
        ("0.5M", 500_000),
        (12, 12),
        ("12", 12),
        ("131_072", 131_072),
        ("1e9", 10**9),
        (1e9, 10**9),
        ("1b", 10**9),
        (" 2 T ", 2 * 10**12),
        ("0.1k", 100),
        (0, 0),
    ],
)
def test_a_quantity_is_read_exactly(written, number):
    assert parse_quantity(written) == number
    assert type(parse_quantity(written)) is int


@pytest.mark.parametrize(
    "written",
    ["", "k", "1.5", "1x", "-3", -3, "0.0001k", True, None, [1], "1e30", "12 34", "1e-3", float("nan"), "inf"],
)
def test_what_is_no_whole_quantity_is_refused_with_the_value_and_an_example(written):
    with pytest.raises(RecipeError, match=r"131k") as caught:
        parse_quantity(written)
    assert repr(written) in str(caught.value)


@given(st.integers(0, MAX_QUANTITY))
def test_every_whole_number_is_read_back_as_itself(number):
    assert parse_quantity(number) == parse_quantity(str(number)) == number


@given(st.integers(1, 10**15))
def test_a_printed_count_typed_back_in_is_within_a_thousandth_or_so(number):
    assert parse_quantity(format_count(number)) == pytest.approx(number, rel=0.051)  # one decimal of at least 1.0


@given(st.integers(1, 999), st.sampled_from([1, 10**3, 10**6, 10**9, 10**12]))
def test_a_round_count_survives_printing_and_reading(digits, scale):
    assert parse_quantity(format_count(digits * scale)) == digits * scale


@pytest.mark.parametrize(
    ("written", "part"),
    [("0.1%", 0.001), (0.05, 0.05), ("5%", 0.05), ("1e-3", 0.001), (1, 1.0), ("100 %", 1.0), (0, 0.0)],
)
def test_a_fraction_is_read(written, part):
    assert parse_fraction(written) == part


@pytest.mark.parametrize("written", ["101%", 1.5, -0.1, "five", "", True, None, "5%%", float("nan")])
def test_what_is_no_part_of_one_is_refused(written):
    with pytest.raises(RecipeError, match="5%"):
        parse_fraction(written)


@given(st.floats(0, 1))
def test_every_part_of_one_is_read_back_as_itself(part):
    assert parse_fraction(part) == parse_fraction(repr(part)) == part


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (41_900_000, "41.9M"),
        (950, "950"),
        (1000, "1k"),
        (18_340, "18.3k"),
        (200_000_000, "200M"),
        (999_960, "1M"),
        (999, "999"),
        (0, "0"),
        (10**9, "1B"),
    ],
)
def test_counts_are_printed_short(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8640, "2 h 24 min"),
        (0, "0 s"),
        (-5, "0 s"),
        (0.4, "0.4 s"),
        (48, "48 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3599.6, "1 h"),
        (7199, "2 h"),
        (183_600, "2 d 3 h"),
        (172_799, "2 d"),
    ],
)
def test_times_are_printed_in_their_two_largest_parts(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, 1e7))
def test_no_printed_time_has_sixty_of_a_part(seconds):
    words = format_duration(seconds).split()
    assert all(
        float(number) < {"s": 60, "min": 60, "h": 24}.get(unit, float("inf"))
        for number, unit in zip(words[::2], words[1::2], strict=True)
    )


def test_bytes_go_in_thousands():
    assert [format_bytes(512), format_bytes(4_200_000), format_bytes(1_800_000_000)] == [
        "512 bytes",
        "4.2 MB",
        "1.8 GB",
    ]
