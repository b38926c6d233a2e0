import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.data.split import choose_threshold, order_key, order_keys, side, text_key, unit, units
from inheritune.errors import DataError

KEYS = st.integers(0, 2**64 - 1)
UNITS = st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=60, unique=True)


def test_the_key_of_a_text_never_changes():

    assert text_key("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")


@given(KEYS)
def test_a_unit_is_at_least_zero_and_below_one_and_the_vectorised_one_agrees(key):
    assert 0 <= unit(key) < 1
    assert units(np.array([key], dtype=np.uint64))[0] == unit(key)


@given(KEYS, st.integers(-(2**40), 2**63))
def test_the_vectorised_order_is_the_scalar_order(key, seed):
    assert int(order_keys(np.array([key], dtype=np.uint64), seed)[0]) == order_key(key, seed)


@given(st.sets(KEYS, min_size=2, max_size=30), st.integers(0, 1000))
def test_different_keys_have_different_places_in_the_order(keys, seed):
    assert len({order_key(key, seed) for key in keys}) == len(keys)


def test_another_seed_gives_another_order_of_the_same_documents():
    keys = np.arange(50, dtype=np.uint64)
    assert not np.array_equal(np.argsort(order_keys(keys, 0)), np.argsort(order_keys(keys, 1)))


@given(KEYS, st.floats(0, 1), st.floats(0, 1))
def test_raising_the_threshold_never_moves_a_document_to_training_or_between_halves(key, a, b):
    low, high = sorted((a, b))
    if side(key, low) != "train":
        assert side(key, high) == side(key, low)


def test_the_halves_are_about_equal_whatever_the_threshold():
    keys = [text_key(f"document {index}") for index in range(20_000)]
    for threshold in (0.02, 0.5):
        held_out = [side(key, threshold) for key in keys if side(key, threshold) != "train"]
        share = held_out.count("decide") / len(held_out)
        assert abs(share - 0.5) < 4 * 0.5 / len(held_out) ** 0.5  # four standard errors of a fair coin
        assert len(held_out) / len(keys) == pytest.approx(threshold, rel=0.2)


@given(UNITS, st.floats(0, 0.9), st.integers(0, 30))
def test_the_threshold_is_the_smallest_that_gives_fraction_and_min_documents(values, fraction, min_documents):
    try:
        threshold = choose_threshold(values, fraction, min_documents)
    except DataError:
        assert 2 * min_documents > len(values)
        return
    count = sum(value < threshold for value in values)
    assert threshold >= fraction and count >= min_documents
    if threshold > fraction:
        assert count == min_documents


@given(UNITS, st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 2), st.integers(0, 2))
def test_the_threshold_never_falls_when_more_validation_is_asked_for(values, a, b, c, d):
    values = [*values, 0.95, 0.96]
    low, high = sorted((a, b))
    fewer, more = sorted((c, d))
    assert choose_threshold(values, low, fewer) <= choose_threshold(values, high, more)


def test_too_many_validation_documents_are_refused_with_both_counts():
    with pytest.raises(DataError, match=r"there are 10 different documents, and 6 .*at most 5 here"):
        choose_threshold([index / 10 for index in range(10)], 0.05, 6)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_of_zero_to_one_is_refused(fraction):
    with pytest.raises(DataError, match="validation fraction"):
        choose_threshold([0.1, 0.2], fraction, 0)
