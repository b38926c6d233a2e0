import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.units import format_bytes, format_count, format_duration, parse_bytes, parse_fraction, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1B", 10**9),
        ("131k", 131_000),
        ("0.5M", 500_000),
        ("12", 12),
        (12, 12),
        ("1e9", 10**9),
        ("2.5k", 2500),
        (3.0, 3),
    ],
)
def test_quantities_are_read(text, number):
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "B", "1.5", "many", "1 Bx", True, float("nan"), "1e-3"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="write"):
        parse_quantity(text)


@pytest.mark.parametrize(("text", "number"), [("0.1%", 0.001), ("5%", 0.05), (0.05, 0.05), ("1", 1.0), (0, 0.0)])
def test_fractions_are_read(text, number):
    assert parse_fraction(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["101%", -0.1, "half", True, "nan"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="write"):
        parse_fraction(text)


@given(st.integers(0, 10**15))
def test_a_whole_number_reads_back_from_its_own_digits(number):
    assert parse_quantity(str(number)) == number
    assert parse_quantity(number) == number


@given(st.integers(0, 10**12))
def test_a_formatted_count_reads_back_within_its_digits(number):
    assert parse_quantity(format_count(number)) == pytest.approx(number, rel=0.05)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 gb", 15 * 10**8),
        ("500MB", 5 * 10**8),
        ("20k", 20_000),
        (" 7 ", 7),
        ("3B", 3),
        ("1T", 10**12),
    ],
)
def test_sizes_are_read(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "x", "2GiB", "-1GB", "0.5B", "1e9", "nan", "2 lots"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="2GB"):
        parse_bytes(text)


@given(st.integers(0, 10**13))
def test_a_size_that_is_shown_is_read_back_within_its_digits(number):
    assert parse_bytes(format_bytes(number)) == pytest.approx(number, rel=0.06)


def test_counts_bytes_and_times_carry_their_unit():
    assert [format_count(n) for n in (987, 4096, 41_900_000, 1_816_000_000, 999_999)] == [
        "987", "4.1k", "41.9M", "1.82B", "1M",
    ]  # fmt: skip
    assert [format_bytes(n) for n in (512, 4_200_000, 21_800_000_000)] == ["512 B", "4.2 MB", "21.8 GB"]
    assert [format_duration(s) for s in (42, 200, 8640, 273_600)] == ["42 s", "3 min 20 s", "2 h 24 min", "3 d 4 h"]
