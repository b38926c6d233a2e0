"""Which continuations are scored together: rows that share a context, batches that share a beginning. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

PADDING = 0.05
"""Share of padding in a forward pass that is worth another one."""

BRANCHED_LEAST, BRANCHED_MOST = 8, 1024
"""Tokens that a context needs for branches to be worth it, and positions of a row beyond which another is begun."""

TRUNK_STEP = 8
"""Trunks are cut to a multiple of this, so that ranges of contexts with nearly the same beginning stay together."""

TRUNK_LEAST = 32
"""Tokens that the contexts of a whole batch must share for them to be computed once for all."""

LENGTHS_OF_TRUNKS = 128
"""So many lengths are told apart; it bounds how deep the search for trunks goes."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation; neither is empty."""


@dataclass(frozen=True)
class Request:
    """One input, and the continuations that are read off it."""

    context: tuple[int, ...]
    tail: tuple[int, ...]
    """The continuation without its last token: input, like the context."""
    targets: dict[tuple[int, ...], list[int]] = field(compare=False, hash=False)
    """Continuation -> the numbers of the pairs that ask for it."""


Row = tuple[Request, ...]
"""Requests of one context: the context once, then their tails as branches."""


@dataclass(frozen=True)
class Batch:
    """Rows that go on from one trunk."""

    trunk: tuple[int, ...]
    """Ids that every context of the batch begins with; computed once."""
    rows: tuple[Row, ...]

    @property
    def requests(self) -> list[Request]:
        """In the order of the rows."""
        return [request for row in self.rows for request in row]

    @property
    def positions(self) -> int:
        """Of all rows, padded, with what the cache holds of each."""
        return len(self.rows) * max(map(length_of, self.rows))


def plan(
    requests: Sequence[Request],
    tokens_at_once: int,
    *,
    together: bool = True,
    trunks: bool = True,
    trunk_least: int = TRUNK_LEAST,
) -> Iterator[Batch]:
    """Requests as batches, the longest row first within a trunk.

    Args:
        requests: with different inputs.
        tokens_at_once: positions of one batch, rows times the longest; a single row may have more.
        together: requests of one context share a row, as branches; else each has its own.
        trunks: compute what many contexts begin with once.
        trunk_least: fewest tokens of a trunk.
    """
    rows = rows_of(requests, together=together)
    ranges = _trunks([row[0].context for row in rows], trunk_least) if trunks else [(0, len(rows), 0)]
    for begin, end, length in ranges:
        batch: list[Row] = []
        for row in sorted(rows[begin:end], key=length_of, reverse=True):
            if batch and (len(batch) + 1) * length_of(batch[0]) > tokens_at_once:
                yield Batch(row[0].context[:length], tuple(batch))
                batch = []
            batch.append(row)
        yield Batch(batch[0][0].context[:length], tuple(batch))


def rows_of(requests: Sequence[Request], *, together: bool) -> list[Row]:
    """Requests by context, in the order of the contexts."""
    ordered = sorted(requests, key=lambda request: (request.context, request.tail))
    if not together:
        return [(request,) for request in ordered]
    rows: list[Row] = []
    for context, each in groupby(ordered, key=lambda request: request.context):
        row: Row = ()
        for request in each:
            fits = len(context) >= BRANCHED_LEAST and length_of((*row, request)) <= BRANCHED_MOST
            if row and not fits:
                rows.append(row)
                row = ()
            row = (*row, request)
        rows.append(row)
    return rows


def length_of(row: Row) -> int:
    """Positions of a row: its context, and the tails of all its requests."""
    return len(row[0].context) + sum(len(request.tail) for request in row)


def longest_input(row: Row) -> int:
    """Positions of the longest input of a row: its context and one tail."""
    return len(row[0].context) + max(len(request.tail) for request in row)


def ids_of(row: Row) -> tuple[int, ...]:
    """The ids of a row."""
    return sum((request.tail for request in row), row[0].context)


def scored_positions(row: Row, begin: int, first_owner: int) -> Iterator[tuple[int, int, int]]:
    """Column, token and continuation of every scored position of a row: the first is read off the context's end."""
    end = len(row[0].context) - begin
    owner, at = first_owner, end
    for request in row:
        for continuation in request.targets:
            yield end - 1, continuation[0], owner
            yield from ((at + place, token, owner) for place, token in enumerate(continuation[1:]))
            owner += 1
        at += len(request.tail)


def places(rows: Sequence[Row], begin: int) -> tuple[list[list[int]], list[list[int]]]:
    """Of every position of the rows: its branch (0 is the context), and its place in the text that it belongs to."""
    branches, positions = [], []
    for row in rows:
        end = len(row[0].context)
        branches.append([0] * (end - begin) + [at for at, each in enumerate(row, start=1) for _ in each.tail])
        positions.append([*range(begin, end), *(end + place for each in row for place in range(len(each.tail)))])
    return branches, positions


def groups_alike(rows: Sequence[Row], begin: int, least_positions: int) -> Iterator[list[int]]:
    """Indices of rows in groups of one forward pass: little padding, yet enough for a matrix product.

    Rows with branches and rows without are apart: the mask of branches takes the place of a model's own, whose window
    an input that was not tried may need.

    Args:
        rows: of a batch.
        begin: positions that the cache holds of each.
        least_positions: of a pass that is not split further.
    """
    lengths = [length_of(row) - begin for row in rows]
    for has_branches in (True, False):
        alike = [index for index, row in enumerate(rows) if (len(row) > 1) == has_branches]
        yield from _groups_of_like_length(alike, lengths, least_positions)


def _groups_of_like_length(indices: Sequence[int], lengths: Sequence[int], least_positions: int) -> Iterator[list[int]]:
    """Some rows in groups, the longest first."""
    group: list[int] = []
    wanted = 0
    for row in sorted(indices, key=lambda row: (-lengths[row], row)):
        padded = lengths[group[0]] * (len(group) + 1) if group else 0
        if padded > least_positions and wanted + lengths[row] < (1 - PADDING) * padded:
            yield group
            group, wanted = [], 0
        group.append(row)
        wanted += lengths[row]
    if group:
        yield group


def _trunks(contexts: Sequence[tuple[int, ...]], least: int) -> list[tuple[int, int, int]]:
    """Ranges [begin, end) of sorted contexts and the length of the trunk that pays most for each; 0 is none.

    A range is either one trunk (its common beginning, once instead of for each context) or falls apart where that is
    shortest, whichever saves more.
    """
    longest = max(map(len, contexts), default=0)
    step = TRUNK_STEP * -(-longest // (TRUNK_STEP * LENGTHS_OF_TRUNKS))
    common = [_common(a, b) // step * step for a, b in pairwise(contexts)]

    def best(begin: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Tokens saved, and the ranges that save them."""
        alone = [(begin, end, 0)]
        if end - begin < 2:
            return 0, alone
        lowest = min(common[begin : end - 1])
        cuts = [begin, *(at + 1 for at in range(begin, end - 1) if common[at] == lowest), end]
        parts = [best(a, b) for a, b in pairwise(cuts)]
        apart = sum(saved for saved, _ in parts)
        # the last token of the shortest context is scored, and a trunk holds none that is
        room = (min(len(each) for each in contexts[begin:end]) - 1) // step * step
        length = min(lowest, room)
        together = (end - begin - 1) * length if length >= least else 0
        if together and together >= apart:
            return together, [(begin, end, length)]
        if not apart:
            return 0, alone
        ranges = [each for _, part in parts for each in part]
        merged: list[tuple[int, int, int]] = []
        for each in ranges:  # neighbours without a trunk are one range
            if merged and not each[2] and not merged[-1][2]:
                merged[-1] = (merged[-1][0], each[1], 0)
            else:
                merged.append(each)
        return apart, merged

    return best(0, len(contexts))[1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))
