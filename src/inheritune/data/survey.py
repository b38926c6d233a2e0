"""The first look at all documents: keys, sizes, duplicates, and who is on which side of the split."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inheritune.data.sources import Document, Source, read_documents
from inheritune.data.split import choose_threshold, order_keys, text_key, units
from inheritune.errors import DataError

SAMPLE_CHARACTERS = 4096
"""Of one document in the sample that the first guess of tokens per byte is made from."""

SAMPLE_DOCUMENTS = 256
STOP_CHECK_DOCUMENTS = 256


@dataclass(frozen=True)
class Survey:
    """All documents in reading order, without their texts."""

    keys: npt.NDArray[np.uint64]
    num_bytes: npt.NDArray[np.int64]
    domain_ids: npt.NDArray[np.int32]
    domain_names: tuple[str, ...]
    kept: npt.NDArray[np.bool_]
    """Not empty, and the first of its text."""
    num_empty: int
    num_duplicates: int
    threshold: float
    """Kept documents with a unit below it are validation."""
    sample: tuple[str, ...]
    """Openings of some documents, drawn by their key."""

    @property
    def validation(self) -> npt.NDArray[np.int64]:
        """Reading indices of the validation documents, by rising unit."""
        chosen = np.flatnonzero(self.kept & (units(self.keys) < self.threshold))
        return chosen[np.argsort(self.keys[chosen], kind="stable")]

    def training(self, seed: int) -> npt.NDArray[np.int64]:
        """Reading indices of the training documents in the random order of ``seed``."""
        chosen = np.flatnonzero(self.kept & (units(self.keys) >= self.threshold))
        return chosen[np.argsort(order_keys(self.keys[chosen], seed), kind="stable")]


def look_over(
    sources: Source | Sequence[Source],
    *,
    text_field: str = "text",
    validation: float = 0.05,
    min_documents: int = 200,
    check_stop: Callable[[], None] | None = None,
) -> Survey:
    """Read all documents once and split them.

    Args:
        sources: see ``read_documents``.
        text_field: field with the text.
        validation: part of the documents asked for as validation.
        min_documents: the fewest validation documents; the part is raised where need be.
        check_stop: called now and then; may raise.

    Raises:
        DataError: no text at all, too few documents, or a source that cannot be read.
    """
    keys, sizes, domains = array("Q"), array("q"), array("i")
    names: dict[str, int] = {}
    sample: list[tuple[int, str]] = []
    empty = bytearray()
    for number, document in enumerate(read_documents(sources, text_field)):
        if check_stop and number % STOP_CHECK_DOCUMENTS == 0:
            check_stop()
        text = document.text
        key = text_key(text)
        keys.append(key)
        sizes.append(len(text.encode()))
        domains.append(names.setdefault(document.domain, len(names)))
        is_empty = not text.strip()
        empty.append(is_empty)
        if not is_empty:
            sample.append((key, text[:SAMPLE_CHARACTERS]))
            if len(sample) >= 2 * SAMPLE_DOCUMENTS:
                sample = sorted(set(sample))[:SAMPLE_DOCUMENTS]
    all_keys = np.frombuffer(keys, dtype=np.uint64)
    is_text = np.frombuffer(empty, dtype=np.uint8) == 0
    if not is_text.any():
        raise DataError(
            f"the sources hold no text ({len(keys)} documents, all empty): {sources}. Check data.sources and "
            "data.text_field."
        )
    kept = np.zeros(len(all_keys), dtype=np.bool_)
    kept[_first_of_each(all_keys, is_text)] = True
    return Survey(
        keys=all_keys,
        num_bytes=np.frombuffer(sizes, dtype=np.int64),
        domain_ids=np.frombuffer(domains, dtype=np.int32),
        domain_names=tuple(names),
        kept=kept,
        num_empty=int((~is_text).sum()),
        num_duplicates=int(is_text.sum() - kept.sum()),
        threshold=choose_threshold(units(all_keys[kept]), validation, min_documents),
        sample=tuple(text for _, text in sorted(set(sample))[:SAMPLE_DOCUMENTS]),
    )


def _first_of_each(keys: npt.NDArray[np.uint64], is_text: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Indices of the first text of each key, in no order."""
    by_key = np.argsort(keys, kind="stable")
    by_key = by_key[is_text[by_key]]
    is_first = np.ones(len(by_key), dtype=np.bool_)
    is_first[1:] = keys[by_key[1:]] != keys[by_key[:-1]]
    return by_key[is_first]


def read_again(
    survey: Survey,
    sources: Source | Sequence[Source],
    wanted: npt.NDArray[np.bool_],
    *,
    text_field: str = "text",
    check_stop: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Document]]:
    """The wanted documents with their reading indices; makes sure that they are the ones looked over.

    Args:
        survey: from ``look_over`` of the same sources.
        sources: see ``read_documents``.
        wanted: (documents,), in reading order.
        text_field: field with the text.
        check_stop: called now and then; may raise.

    Raises:
        DataError: the sources give other documents than before.
    """
    changed = DataError(
        f"the sources changed while they were being read: {sources}. Leave them alone until the data are prepared."
    )
    count = 0
    for index, document in enumerate(read_documents(sources, text_field)):
        if check_stop and index % STOP_CHECK_DOCUMENTS == 0:
            check_stop()
        count += 1
        if count > len(wanted):
            raise changed
        if wanted[index]:
            if text_key(document.text) != int(survey.keys[index]):
                raise changed
            yield index, document
    if count != len(wanted):
        raise changed


def training_texts(
    sources: Source | Sequence[Source],
    *,
    text_field: str = "text",
    validation: float = 0.05,
    min_documents: int = 200,
    check_stop: Callable[[], None] | None = None,
) -> Iterator[str]:
    """The texts on the training side, each once, in reading order: what a tokenizer may be made from.

    Arguments and errors are those of ``look_over``.
    """
    found = look_over(
        sources, text_field=text_field, validation=validation, min_documents=min_documents, check_stop=check_stop
    )
    wanted = found.kept & (units(found.keys) >= found.threshold)
    for _, document in read_again(found, sources, wanted, text_field=text_field, check_stop=check_stop):
        yield document.text
