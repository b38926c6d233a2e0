"""Tokens of the chosen documents: encoded in reading order, then written in their stored order."""

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from inheritune.data.integrity import INDEX_DTYPE, BlockHashes
from inheritune.data.sources import Source
from inheritune.data.survey import Survey, read_again
from inheritune.data.tokenizer import TextTokenizer

BATCH_BYTES = 2**18
"""Text of one call of the tokenizer; what it gives back takes some hundred times as much memory."""

MOST_CALLS = 16
"""Calls of the tokenizer side by side, at most: beyond that, taking token ids out of its answers keeps Python busy."""

WAITING = 4
"""Batches that are encoded or wait to be written, at most, for each call."""

BATCH_DOCUMENTS = 4096

TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
"""The ``tokenizers`` library looks at it in each call."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, or some of a long one."""

    index: int
    """Of the document, in reading order."""
    text: str
    document_bytes: int | None
    """UTF-8 bytes of the whole text, with its first piece; None with the later ones."""


class Encoded(AbstractContextManager["Encoded"]):
    """A temporary file of documents' tokens in the order they came, end-of-text first."""

    def __init__(self, path: Path, dtype: np.dtype[Any], num_documents: int) -> None:
        """Start an empty file for up to ``num_documents`` documents, known by their reading index."""
        self.path = path
        self.dtype = dtype
        self.starts: npt.NDArray[np.int64] = np.zeros(num_documents, dtype=np.int64)
        self.lengths: npt.NDArray[np.int64] = np.zeros(num_documents, dtype=np.int64)
        """Tokens, end-of-text included; 0 where the document is not here."""
        self.byte_lengths: npt.NDArray[np.int64] = np.zeros(num_documents, dtype=np.int64)
        """UTF-8 bytes of the text that the tokens spell."""
        self._file: BinaryIO = path.open("wb")
        self._reader: BinaryIO = path.open("rb")
        self._num_tokens = 0

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._reader.close()

    def begin(self, index: int, end_of_text_id: int, num_bytes: int) -> None:
        """Append a document without its text."""
        self.starts[index], self.lengths[index], self.byte_lengths[index] = self._num_tokens, 0, num_bytes
        self.add(index, np.array([end_of_text_id]))

    def add(self, index: int, ids: npt.NDArray[np.integer]) -> None:
        """Append tokens of the document that was begun last."""
        self._file.write(ids.astype(self.dtype).tobytes())  # tofile is silent of a disk that is full
        self.lengths[index] += len(ids)
        self._num_tokens += len(ids)

    def tokens(self, begin: int, number: int) -> npt.NDArray[np.integer]:
        """So many tokens from a place on; read, since a mapped file counts as memory of the process."""
        self._file.flush()
        self._reader.seek(begin * self.dtype.itemsize)
        return np.frombuffer(self._reader.read(number * self.dtype.itemsize), dtype=self.dtype)


def tokens_per_byte(texts: Sequence[str], tokenizer: TextTokenizer) -> float:
    """Tokens for one byte of text; only a guess is made with it."""
    num_tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    return max(num_tokens, 1) / max(1, sum(len(text.encode()) for text in texts))


def cut_text(text: str, num_bytes: int) -> str:
    """The longest opening of whole characters that is at most ``num_bytes`` of UTF-8."""
    return text.encode()[:num_bytes].decode(errors="ignore")


def encode_documents(
    survey: Survey,
    sources: Source | Sequence[Source],
    wanted: npt.NDArray[np.int64],
    tokenizer: TextTokenizer,
    encoded: Encoded,
    *,
    text_field: str,
    cut: npt.NDArray[np.int64],
    cut_bytes: int,
    check_stop: Callable[[], None] | None = None,
) -> dict[int, str]:
    """Read the sources again and add the wanted documents to ``encoded``.

    Each core has a call of the tokenizer of its own, outside of Python's lock; while batches are encoded, the next ones
    are read and those before them written. A long text is encoded in pieces (``TextTokenizer.pieces``).

    Args:
        survey: of these sources.
        sources: see ``read_documents``.
        wanted: reading indices of documents that are encoded whole.
        tokenizer: of the shards.
        encoded: where the tokens go.
        text_field: field with the text.
        cut: reading indices of further documents, of which only the opening is.
        cut_bytes: bytes of that opening.
        check_stop: called now and then; may raise.

    Returns:
        The openings that were encoded, by reading index.
    """
    is_wanted, is_cut = (np.zeros(len(survey.keys), dtype=np.bool_) for _ in range(2))
    is_wanted[wanted] = is_wanted[cut] = is_cut[cut] = True
    texts: dict[int, str] = {}

    def batches() -> Iterator[list[Piece]]:
        batch: list[Piece] = []
        held = 0
        for index, document in read_again(survey, sources, is_wanted, text_field=text_field, check_stop=check_stop):
            text, num_bytes = document.text, int(survey.num_bytes[index])
            if is_cut[index]:
                text = texts[index] = cut_text(text, cut_bytes)
                num_bytes = len(text.encode())
            for number, piece in enumerate(tokenizer.pieces(text)):
                batch.append(Piece(index, piece, None if number else num_bytes))
                held += len(piece)
                if held >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                    yield batch
                    batch, held = [], 0
        if batch:
            yield batch

    waiting: deque[tuple[list[Piece], Future[list[npt.NDArray[np.uint32]]]]] = deque()

    def write_first() -> None:
        batch, ids = waiting.popleft()
        for piece, ids_T in zip(batch, ids.result(), strict=True):
            if piece.document_bytes is not None:
                encoded.begin(piece.index, tokenizer.end_of_text_id, piece.document_bytes)
            encoded.add(piece.index, ids_T)

    workers = min(MOST_CALLS, _num_cores())
    with _one_thread_a_call(), ThreadPoolExecutor(max_workers=workers) as calls:
        for batch in batches():
            if check_stop:
                check_stop()
            waiting.append((batch, calls.submit(tokenizer.encode_batch, [piece.text for piece in batch])))
            if len(waiting) == WAITING * workers:
                write_first()
        while waiting:
            write_first()
    return texts


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """The tokenizer's own threads off: calls that share them wait for each other, and cores stand still."""
    before = os.environ.get(TOKENIZER_THREADS)
    os.environ[TOKENIZER_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TOKENIZER_THREADS]
        else:
            os.environ[TOKENIZER_THREADS] = before


def write_split(
    folder: Path,
    split: str,
    order: npt.NDArray[np.int64],
    encoded: Encoded,
    survey: Survey,
    tokenizer: TextTokenizer,
    shard_tokens: int,
    token_limit: int | None,
) -> tuple[dict[str, Any], int]:
    """Write one split's shards and indices.

    Args:
        folder: where to.
        split: name of the files.
        order: reading indices of its documents, in stored order.
        encoded: their tokens.
        survey: their domains.
        tokenizer: gives the bytes of a document that is cut by the limit.
        shard_tokens: a new file is begun where a document would go beyond it.
        token_limit: tokens of the whole split; the last document is cut to meet it.

    Returns:
        The split's part of the manifest, and its largest token id.
    """
    lengths, byte_lengths = encoded.lengths[order], encoded.byte_lengths[order]
    excess = 0 if token_limit is None else int(lengths.sum()) - token_limit
    if excess > 0:
        lengths[-1] -= excess
        begin = int(encoded.starts[order[-1]])
        kept = encoded.tokens(begin + 1, int(lengths[-1]) - 1).tolist()
        byte_lengths[-1] = min(int(byte_lengths[-1]), len(tokenizer.decode(kept).encode()))
    shards: list[dict[str, Any]] = []
    largest = 0
    position = 0
    while position < len(order):
        name = f"{split}-{len(shards):05d}"
        token_starts, byte_starts = array("Q", [0]), array("Q", [0])
        hashes, index_hashes = BlockHashes(), BlockHashes()
        with (folder / f"{name}.bin").open("wb") as file:
            while position < len(order):
                length = int(lengths[position])
                if token_starts[-1] and token_starts[-1] + length > shard_tokens:
                    break
                part = encoded.tokens(int(encoded.starts[order[position]]), length)
                content = part.tobytes()
                file.write(content)
                hashes.add(content)
                largest = max(largest, int(part.max()))
                token_starts.append(token_starts[-1] + length)
                byte_starts.append(byte_starts[-1] + int(byte_lengths[position]))
                position += 1
        index = np.stack([np.array(token_starts), np.array(byte_starts)], axis=1).astype(INDEX_DTYPE).tobytes()
        (folder / f"{name}.idx").write_bytes(index)
        index_hashes.add(index)
        shards.append(
            {
                "file": f"{name}.bin",
                "index": f"{name}.idx",
                "tokens": token_starts[-1],
                "documents": len(token_starts) - 1,
                "bytes": byte_starts[-1],
                "sha256": hashes.sha256,
                "index_sha256": index_hashes.sha256,
                "sha256_at_blocks": hashes.at_blocks,
                "index_sha256_at_blocks": index_hashes.at_blocks,
            }
        )
    domain_ids = survey.domain_ids[order]
    domains = {
        name: {
            "tokens": int(lengths[domain_ids == number].sum()),
            "documents": int((domain_ids == number).sum()),
            "bytes": int(byte_lengths[domain_ids == number].sum()),
        }
        for number, name in sorted(enumerate(survey.domain_names), key=lambda pair: pair[1])
        if (domain_ids == number).any()
    }
    totals = {"tokens": int(lengths.sum()), "documents": len(order), "bytes": int(byte_lengths.sum())}
    return {**totals, "domains": domains, "shards": shards}, largest
