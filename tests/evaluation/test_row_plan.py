"""Every request is in one row, and what rows and batches share is common to them."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from inheritune.evaluation.row_plan import BRANCHED_MOST, TRUNK_STEP, Request, groups_alike, length_of, plan, rows_of


def ids(seed, length):
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


tokens = st.integers(0, 2)
requests = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=60).map(tuple), st.lists(tokens, max_size=5).map(tuple)),
    min_size=1,
    max_size=25,
    unique=True,
).map(lambda pairs: [Request(context, tail, {(*tail, 0): [number]}) for number, (context, tail) in enumerate(pairs)])


@given(requests, st.integers(1, 300), st.booleans(), st.booleans(), st.sampled_from([8, 32]))
def test_every_request_is_in_one_row_and_what_is_shared_is_common(asked, tokens_at_once, together, trunks, trunk_least):
    batches = list(plan(asked, tokens_at_once, together=together, trunks=trunks, trunk_least=trunk_least))
    assert sorted(number for batch in batches for request in batch.requests for number in _numbers(request)) == list(
        range(len(asked))
    )
    for batch in batches:
        assert trunks or not batch.trunk
        assert not len(batch.trunk) % TRUNK_STEP
        assert len(batch.rows) == 1 or batch.positions <= tokens_at_once
        for row in batch.rows:
            assert together or len(row) == 1
            assert len({request.context for request in row}) == 1
            assert len(batch.trunk) < len(row[0].context)  # the last token of a context is scored
            assert row[0].context[: len(batch.trunk)] == batch.trunk
        lengths = [length_of(row) for row in batch.rows]
        assert all(a >= b for a, b in pairwise(lengths))  # the longest first: memory runs out early or never


@given(requests, st.integers(1, 300))
def test_every_row_is_in_one_pass_and_those_with_branches_are_apart(asked, least_positions):
    rows = rows_of(asked, together=True)
    groups = list(groups_alike(rows, 0, least_positions))
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for group in groups:
        assert len({len(rows[index]) > 1 for index in group}) == 1


def test_rows_do_not_grow_without_end_nor_branch_off_nothing():
    long = [
        Request(tuple(ids(0, 20)), tuple(ids(number, 30)), {(*ids(number, 30), 1): [number]}) for number in range(50)
    ]
    assert max(length_of(row) for batch in plan(long, 8192) for row in batch.rows) <= BRANCHED_MOST
    short = [Request((256,), tuple(ids(number, 5)), {(*ids(number, 5), 1): [number]}) for number in range(50)]
    assert all(len(row) == 1 for batch in plan(short, 8192) for row in batch.rows)


def _numbers(request):
    return [number for numbers in request.targets.values() for number in numbers]


def test_examples_of_a_subject_are_one_trunk():
    shots = [tuple(ids(subject, 40)) for subject in range(3)]
    asked = [Request((*shot, *ids(100 + number, 12)), (), {}) for shot in shots for number in range(5)]
    batches = list(plan(asked, 10_000))
    assert sorted(batch.trunk for batch in batches) == sorted(shots)
    assert [len(batch.rows) for batch in batches] == [5, 5, 5]
