# LEAD: see NOTE_FROM_LEAD.txt in this folder.
"""Rows of tokens for training: documents in a new order each pass, one after the other, cut into rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.data.shards import TokenDocuments
from inheritune.errors import DataError


@dataclass(frozen=True)
class Position:
    """The whole state of a sampler: the row that comes next."""

    pass_index: int
    """Passes over the data that are done."""
    row: int
    """Rows of this pass that are done."""


class Sampler:
    """Rows of ``sequence_length + 1`` tokens; the last token of a row is the first of the next."""

    def __init__(self, documents: TokenDocuments, sequence_length: int, seed: int) -> None:
        """Sample from ``documents``.

        Raises:
            DataError: the documents do not fill one row.
        """
        self.documents = documents
        self.sequence_length = sequence_length
        self.seed = seed
        self.rows_per_pass = (documents.num_tokens - 1) // sequence_length
        if self.rows_per_pass < 1:
            raise DataError(
                f"{documents.num_tokens} training tokens do not fill one row of {sequence_length}. "
                "Give more text, or lower data.sequence_length."
            )
        self._pass_index = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._starts: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def _shuffle(self, pass_index: int) -> None:
        """Lay out one pass: the order of documents, and where each starts in it."""
        if pass_index == self._pass_index:
            return
        generator = np.random.Generator(np.random.PCG64([self.seed % 2**63, pass_index]))
        self._order = generator.permutation(self.documents.num_documents)
        lengths = self.documents.lengths[self._order]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._pass_index = pass_index

    def _tokens(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Tokens [begin, end) of the current pass."""
        parts = []
        index = int(np.searchsorted(self._starts, begin, side="right")) - 1
        while begin < end:
            document = self.documents.document(int(self._order[index]))
            offset = begin - int(self._starts[index])
            part = document[offset : offset + end - begin]
            parts.append(part)
            begin += len(part)
            index += 1
        return np.concatenate(parts).astype(np.int64)

    def rows(self, position: Position, count: int) -> tuple[npt.NDArray[np.int64], Position]:
        """The next ``count`` rows from ``position``, across the ends of passes.

        Returns:
            int64 (count, sequence_length + 1), and the position after them.
        """
        length = self.sequence_length
        out = np.empty((count, length + 1), dtype=np.int64)
        filled = 0
        pass_index, row = position.pass_index, position.row
        while filled < count:
            if row == self.rows_per_pass:
                pass_index, row = pass_index + 1, 0
            self._shuffle(pass_index)
            take = min(count - filled, self.rows_per_pass - row)
            tokens = self._tokens(row * length, (row + take) * length + 1)
            for index in range(take):
                out[filled + index] = tokens[index * length : (index + 1) * length + 1]
            filled, row = filled + take, row + take
        return out, Position(pass_index, row)

    def to_json(self) -> dict[str, Any]:
        """What defines the order, beside the data."""
        return {"sequence_length": self.sequence_length, "seed": self.seed, "rows_per_pass": self.rows_per_pass}
