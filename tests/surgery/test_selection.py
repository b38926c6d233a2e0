import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery.selection import is_prefix, parse_selection


@given(depth=st.integers(1, 200), data=st.data())
def test_a_number_selects_that_many_first_layers(depth, data):
    number = data.draw(st.integers(1, depth))
    assert parse_selection(number, depth) == parse_selection(str(number), depth) == tuple(range(number))
    assert is_prefix(parse_selection(number, depth))


@given(depth=st.integers(1, 200))
def test_half_is_a_prefix_and_never_empty(depth):
    half = parse_selection("half", depth)
    assert is_prefix(half)
    assert depth <= 2 * len(half) <= depth + 1


@given(depth=st.integers(1, 60), data=st.data())
def test_indices_come_back_as_they_are_given(depth, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    assert parse_selection(chosen, depth) == tuple(chosen)


@given(depth=st.integers(1, 60), chosen=st.lists(st.integers(-5, 70)))
def test_a_list_is_either_increasing_indices_of_the_reference_or_refused(depth, chosen):
    valid = chosen == sorted(set(chosen)) and chosen and chosen[0] >= 0 and chosen[-1] < depth
    if valid:
        assert parse_selection(chosen, depth) == tuple(chosen)
    else:
        with pytest.raises(SurgeryError):
            parse_selection(chosen, depth)


@given(depth=st.integers(1, 60), text=st.text(max_size=6))
def test_any_text_gives_a_selection_or_one_error(depth, text):
    try:
        assert is_prefix(parse_selection(text, depth))
    except SurgeryError as error:
        assert str(depth) in str(error)


@pytest.mark.parametrize("layers", [0, -3, 9, True, "0", "9", "-1", "3.5", "first", "", [8], [True]])
def test_error_says_how_many_layers_there_are(layers):
    with pytest.raises(SurgeryError, match=r"[78]"):
        parse_selection(layers, 8)


def test_a_selection_with_a_hole_is_no_prefix():
    assert not is_prefix((0, 2))
    assert not is_prefix((1, 2))
