import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.data.batches import Position, Sampler
from inheritune.errors import DataError


class Listed:
    """Documents in memory."""

    def __init__(self, documents):
        self.documents = [np.array(document, dtype=np.uint16) for document in documents]
        self.lengths = np.array([len(document) for document in documents], dtype=np.int64)

    def document(self, index):
        return self.documents[index]


def numbered(lengths):
    """Documents whose tokens are all different."""
    ends = np.cumsum(lengths)
    return Listed([range(end - length, end) for end, length in zip(ends, lengths, strict=True)])


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=20).filter(lambda lengths: sum(lengths) > 6)
SIZES = st.integers(1, 6)


@given(LENGTHS, SIZES, st.integers(0, 5), st.integers(0, 3))
def test_a_pass_holds_every_token_once_but_for_its_tail(lengths, length, seed, pass_index):
    sampler = Sampler(numbered(lengths), length, seed)
    rows, _ = sampler.rows(Position(pass_index, 0), sampler.rows_per_pass(0))
    assert rows.shape == (sampler.rows_per_pass(0), length + 1) and rows.dtype == np.int64
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])  # rows overlap by one
    seen = Counter([*rows[:, :-1].ravel().tolist(), int(rows[-1, -1])])
    assert set(seen.values()) == {1}
    assert sum(lengths) - len(seen) < length


@given(LENGTHS, SIZES, st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_rows_do_not_depend_on_how_many_are_fetched_at_once(lengths, length, counts):
    documents = numbered(lengths)
    sampler, position, parts = Sampler(documents, length, 3), Position(0, 0), []
    for count in counts:
        part, position = sampler.rows(position, count)
        parts.append(part)
    whole, end = Sampler(documents, length, 3).rows(Position(0, 0), sum(counts))
    assert np.array_equal(np.concatenate(parts), whole)
    assert end == position


@given(LENGTHS, SIZES, st.integers(0, 40))
def test_a_new_sampler_goes_on_from_a_saved_position(lengths, length, count):
    documents = numbered(lengths)
    _, position = Sampler(documents, length, 1).rows(Position(0, 0), count)
    saved = Position(**json.loads(json.dumps(asdict(position))))
    expected, _ = Sampler(documents, length, 1).rows(Position(0, 0), count + 5)
    assert np.array_equal(Sampler(documents, length, 1).rows(saved, 5)[0], expected[count:])


def test_a_document_stays_whole_and_in_order_within_a_pass():
    sampler = Sampler(numbered([50] * 4), 1, 0)
    rows, _ = sampler.rows(Position(0, 0), sampler.rows_per_pass(0))
    stream = np.append(rows[:, 0], rows[-1, 1])
    assert all((np.diff(part) == 1).all() for part in stream.reshape(4, 50))


def test_passes_and_seeds_have_different_orders_and_the_same_seed_the_same():
    documents = numbered([7] * 40)
    first = [Sampler(documents, 6, 0).rows(Position(index, 0), 20)[0] for index in (0, 1)]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], Sampler(documents, 6, 1).rows(Position(0, 0), 20)[0])
    assert np.array_equal(first[0], Sampler(documents, 6, 0).rows(Position(0, 0), 20)[0])


def test_the_position_after_the_last_row_is_the_next_pass():
    sampler = Sampler(numbered([9]), 4, 0)
    assert sampler.rows_per_pass(0) == 2
    assert sampler.rows(Position(0, 0), 2)[1] == Position(1, 0)


def test_data_below_one_row_are_refused_and_exactly_one_row_is_not():
    assert Sampler(numbered([3, 2]), 4, 0).rows_per_pass(0) == 1
    with pytest.raises(DataError, match=r"hold 4 tokens, which do not fill one row of 4 \+ 1"):
        Sampler(numbered([3, 1]), 4, 0)


@pytest.mark.parametrize("position", [Position(0, 2), Position(0, -1), Position(-1, 0)])
def test_a_position_of_other_data_is_refused(position):
    with pytest.raises(DataError, match="made with other data"):
        Sampler(numbered([9]), 4, 0).rows(position, 1)
