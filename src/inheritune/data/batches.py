"""Rows of tokens for training, in a seeded order whose whole state is (pass, row).

Documents are permuted per (seed, pass), concatenated (virtually) and cut into rows of ``sequence_length`` + 1 tokens
that overlap by one. The tail of a pass that does not fill a row is left out of that pass. Passes may go over different
documents, as they do where a budget was raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inheritune.errors import DataError


class Documents(Protocol):
    """What is sampled: ``Shards.sequence("train")``, or anything like it."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, (documents,)."""
        ...

    def document(self, index: int, /) -> npt.NDArray[np.integer]:
        """Token ids of one document."""
        ...


@dataclass(frozen=True)
class Position:
    """The next row to be read; plain integers, so ``dataclasses.asdict`` of it is JSON."""

    pass_index: int
    """Passes over the data that are done."""
    row: int
    """Rows of this pass that are done."""


class Sampler:
    """Rows of the training documents; it keeps no state but a cache of the current pass's order."""

    def __init__(self, documents: Documents | Sequence[Documents], sequence_length: int, seed: int) -> None:
        """Look at the documents.

        Args:
            documents: the training split; or one for each pass, of which the last serves all passes that follow.
            sequence_length: L, tokens that a row predicts.
            seed: of the order.

        Raises:
            DataError: fewer than L + 1 tokens.
        """
        self.passes = tuple(documents) if isinstance(documents, Sequence) else (documents,)
        self.sequence_length = sequence_length
        self.seed = seed
        self._rows = tuple((int(each.lengths.sum()) - 1) // sequence_length for each in self.passes)
        if min(self._rows) < 1:
            fewest = min(int(each.lengths.sum()) for each in self.passes)
            raise DataError(
                f"the training data hold {fewest} tokens, which do not fill one row of "
                f"{sequence_length} + 1. Add sources, raise data.token_budget, or lower data.sequence_length."
            )
        self._pass_index = -1
        self._order: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._ends: npt.NDArray[np.int64] = self._order

    def documents(self, pass_index: int) -> Documents:
        """What a pass goes over."""
        return self.passes[min(pass_index, len(self.passes) - 1)]

    def rows_per_pass(self, pass_index: int) -> int:
        """Whole rows of a pass."""
        return self._rows[min(pass_index, len(self._rows) - 1)]

    def rows(self, position: Position, count: int) -> tuple[npt.NDArray[np.int64], Position]:
        """The next rows, across the end of a pass where need be.

        Args:
            position: of the first row; ``Position(0, 0)`` at the start.
            count: rows wanted.

        Returns:
            int64 (count, L + 1), and the position after them.

        Raises:
            DataError: a position that these data do not have.
        """
        if position.pass_index < 0 or not 0 <= position.row < self.rows_per_pass(position.pass_index):
            raise DataError(
                f"{position} does not exist: that pass over these data has "
                f"{self.rows_per_pass(max(position.pass_index, 0))} rows. "
                "The checkpoint was made with other data; name its data or start over."
            )
        L = self.sequence_length
        rows = np.empty((count, L + 1), dtype=np.int64)
        filled, pass_index, row = 0, position.pass_index, position.row
        while filled < count:
            taken = min(count - filled, self.rows_per_pass(pass_index) - row)
            tokens = self._tokens(pass_index, row * L, (row + taken) * L + 1)
            rows[filled : filled + taken] = np.lib.stride_tricks.sliding_window_view(tokens, L + 1)[::L]
            filled, row = filled + taken, row + taken
            if row == self.rows_per_pass(pass_index):
                pass_index, row = pass_index + 1, 0
        return rows, Position(pass_index, row)

    def _tokens(self, pass_index: int, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Tokens [begin, end) of a pass's concatenated documents."""
        documents = self.documents(pass_index)
        if pass_index != self._pass_index:
            lengths = documents.lengths
            generator = np.random.Generator(np.random.PCG64([self.seed % 2**64, pass_index]))
            self._order = generator.permutation(len(lengths))
            self._ends = np.cumsum(lengths[self._order])
            self._pass_index = pass_index
        tokens = np.empty(end - begin, dtype=np.int64)
        place = int(np.searchsorted(self._ends, begin, side="right"))
        written = 0
        while written < len(tokens):
            document = documents.document(int(self._order[place]))
            start = int(self._ends[place]) - len(document)
            part = document[max(begin - start, 0) : end - start]
            tokens[written : written + len(part)] = part
            written += len(part)
            place += 1
        return tokens

    def to_json(self) -> dict[str, Any]:
        """What defines the order, beside the data."""
        return {"sequence_length": self.sequence_length, "seed": self.seed, "rows_per_pass": list(self._rows)}
