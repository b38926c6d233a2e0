from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SurgeryError
from inheritune.surgery.selection import in_words, is_prefix, parse_selection, selection_table, show_selection

depths = st.integers(1, 200)


@st.composite
def selections(draw, max_depth=60):
    """A depth, and some of its layers in order."""
    depth = draw(st.integers(1, max_depth))
    return depth, tuple(sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1))))


@given(depth=depths, data=st.data())
def test_a_number_selects_that_many_first_layers(depth, data):
    number = data.draw(st.integers(1, depth))
    assert parse_selection(number, depth) == parse_selection(str(number), depth) == tuple(range(number))
    assert is_prefix(parse_selection(number, depth))


@given(depth=depths)
def test_half_is_a_prefix_and_never_empty(depth):
    half = parse_selection("half", depth)
    assert is_prefix(half)
    assert depth <= 2 * len(half) <= depth + 1


@given(selections())
def test_indices_come_back_as_they_are_given(case):
    depth, chosen = case
    assert parse_selection(list(chosen), depth) == chosen


@given(selections())
def test_a_selection_is_read_back_from_the_words_it_is_printed_in(case):
    depth, chosen = case
    assert parse_selection(in_words(chosen), depth) == chosen


@given(selections())
def test_what_is_dropped_and_what_is_kept_are_all_layers_once(case):
    depth, chosen = case
    if len(chosen) == depth:
        with pytest.raises(SurgeryError, match=f"leaves none of the {depth} layers"):
            parse_selection(f"drop {in_words(chosen)}", depth)
    else:
        kept = parse_selection(f"drop {in_words(chosen)}", depth)
        assert sorted(kept + chosen) == list(range(depth))


@given(case=selections(), data=st.data())
def test_an_index_below_zero_is_counted_from_the_end(case, data):
    depth, chosen = case
    spelled = [str(index - depth * data.draw(st.booleans())) for index in chosen]
    written = ",".join(f"{index}-{index}" for index in spelled)
    assert parse_selection(written, depth) == chosen
    first, last = chosen[0], chosen[-1]
    whole = tuple(range(first, last + 1))
    for text in (f"{first}-{last}", f"{first - depth}-{last - depth}", f"{first}-{last - depth}"):
        assert parse_selection(text, depth) == whole


@given(depth=depths, data=st.data())
def test_a_spread_has_that_many_layers_evenly_with_the_first_and_the_last(depth, data):
    number = data.draw(st.integers(min(2, depth), depth))
    spread = parse_selection(f"spread-{number}", depth)
    assert len(set(spread)) == number
    assert list(spread) == sorted(spread)
    assert {spread[0], spread[-1]} == {0, depth - 1}
    gaps = {later - earlier for earlier, later in pairwise(spread)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(depth=depths, data=st.data())
def test_last_is_what_dropping_the_others_leaves(depth, data):
    number = data.draw(st.integers(1, depth))
    last = parse_selection(f"last-{number}", depth)
    assert last == parse_selection(f"-{number}--1", depth)
    if number < depth:
        assert last == parse_selection(f"drop 0-{depth - number - 1}", depth)


@given(depth=depths, step=st.integers(1, 300))
def test_every_nth_begins_with_the_first_layer_and_leaves_out_the_same_number_each_time(depth, step):
    assert parse_selection(f"every-{step}", depth) == tuple(index for index in range(depth) if index % step == 0)


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40), data=st.data())
def test_no_layer_that_is_left_out_scores_higher_than_one_that_is_kept(scores, data):
    number = data.draw(st.integers(1, len(scores)))
    kept = parse_selection(f"best-{number} scores.csv", len(scores), dict(enumerate(scores)))
    left_out = set(range(len(scores))) - set(kept)
    assert len(kept) == number and list(kept) == sorted(kept)
    assert all((scores[low], -low) < (scores[high], -high) for low in left_out for high in kept)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0-5,8,-1", (0, 1, 2, 3, 4, 5, 8, 11)),
        ("-4--1", (8, 9, 10, 11)),
        ("5--5", (5, 6, 7)),
        ("-1", (11,)),
        (" 0 , 2 - 3".replace(" - ", "-"), (0, 2, 3)),
        ("drop 8-9", (0, 1, 2, 3, 4, 5, 6, 7, 10, 11)),
        ("drop -1", tuple(range(11))),
        ("drop 5", (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)),
        ("every-2", (0, 2, 4, 6, 8, 10)),
        ("spread-4", (0, 4, 7, 11)),
        ("last-3", (9, 10, 11)),
        ("5", (0, 1, 2, 3, 4)),
        ("5-5", (5,)),
    ],
)
def test_words_of_the_manual_mean_these_layers_of_twelve(text, kept):
    assert parse_selection(text, 12) == kept


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("8,0-5", "Write each once: 0-5,8."),
        ("0-5,5", "Write each once: 0-5."),
        ("3,3", "Write each once: 3-3."),
        ("5-2", "Write each once: 2-5."),
        ("-1,0", "Write each once: 0,11."),
        ("drop 9,8", "Write each once: drop 8-9."),
        ("0-12", "0 to 11, or -12 to -1"),
        ("-13", "0 to 11, or -12 to -1"),
        ("0-999999999", "0 to 11, or -12 to -1"),
        ("drop", "'drop 2-5'"),
        ("best-4", "'best-4 scores.csv'"),
        ("drop 0--1", "Drop at most 11"),
        ("every-0", "every-2"),
        ("spread-1", "Write spread-2 or more; for one layer its index twice, as 0-0."),
        ("spread-13", "Choose 1 to 12"),
        ("last-0", "Choose 1 to 12"),
        ("most", "a number of first layers, half"),
        ("0-5,x", "a number of first layers, half"),
        ("1" * 5000, "a number of first layers, half"),
        ("", "a number of first layers, half"),
    ],
)
def test_what_is_refused_says_what_to_write(text, advice):
    with pytest.raises(SurgeryError) as refused:
        parse_selection(text, 12)
    assert advice in str(refused.value)
    if "Write each once: " in advice:
        parse_selection(advice.removeprefix("Write each once: ").removesuffix("."), 12)


@given(depth=st.integers(1, 60), chosen=st.lists(st.integers(-5, 70)))
def test_a_list_is_either_increasing_indices_of_the_reference_or_refused(depth, chosen):
    valid = chosen == sorted(set(chosen)) and chosen and chosen[0] >= 0 and chosen[-1] < depth
    if valid:
        assert parse_selection(chosen, depth) == tuple(chosen)
    else:
        with pytest.raises(SurgeryError):
            parse_selection(chosen, depth)


@given(depth=st.integers(1, 60), text=st.text("0123456789-, drophalfevrystb", max_size=9) | st.text(max_size=6))
def test_any_text_gives_increasing_layers_of_the_reference_or_one_error(depth, text):
    try:
        layers = parse_selection(text, depth)
    except SurgeryError as error:
        assert str(depth) in str(error) or "drop" in str(error) or "best" in str(error)
    else:
        assert layers and list(layers) == sorted(set(layers))
        assert layers[0] >= 0 and layers[-1] < depth


@pytest.mark.parametrize("layers", [0, -3, 9, True, "0", "9", "3.5", "first", "", [8], [True]])
def test_error_says_how_many_layers_there_are(layers):
    with pytest.raises(SurgeryError, match=r"[78]"):
        parse_selection(layers, 8)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({0: 1.0, 1: 2.0}, "no score for layer 2"),
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, "scores a layer 3"),
        (None, "scores_for"),
    ],
)
def test_scores_of_another_depth_are_refused(scores, said):
    with pytest.raises(SurgeryError, match=said):
        parse_selection("best-2 scores.csv", 3, scores)


def test_of_equal_scores_the_earlier_layers_are_kept():
    assert parse_selection("best-2 scores.csv", 4, {0: 1.0, 1: 1.0, 2: 1.0, 3: 5.0}) == (0, 3)


def test_a_selection_with_a_hole_is_no_prefix():
    assert not is_prefix((0, 2))
    assert not is_prefix((1, 2))


@given(selections())
def test_the_shown_table_names_every_pair_of_the_table_once(case):
    depth, chosen = case
    pairs = []
    for line in show_selection(chosen).splitlines()[1:]:
        sides = [parse_selection(f"{side}-{side}" if side.isdecimal() else side, depth) for side in line.split()]
        pairs += zip(*sides, strict=True)
    assert tuple(pairs) == selection_table(chosen) == tuple((child, chosen[child]) for child in range(len(chosen)))


def test_long_stretches_are_one_line_of_the_shown_table():
    assert show_selection((*range(20), 28, 40, 41)).splitlines() == [
        "layer of the child  layer of the reference",
        "0-19                0-19",
        "20                  28",
        "21-22               40-41",
    ]
