# LEAD: see NOTE_FROM_LEAD.txt in this folder.
"""Which side of the split a text is on: a pure function of the text itself."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from inheritune.errors import DataError

Side = Literal["train", "watch", "decide"]


def text_key(text: str) -> int:
    """64 bits of BLAKE2b of the UTF-8 text. No seed: the validation set is the same whatever the seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unit(key: int) -> float:
    """The key's upper 53 bits as a number in [0, 1)."""
    return (key >> 11) / 2**53


def side(key: int, threshold: float) -> Side:
    """Validation below the threshold; the lowest bit, which the threshold does not see, says which half."""
    if unit(key) >= threshold:
        return "train"
    return "decide" if key & 1 else "watch"


def order_key(key: int, seed: int) -> int:
    """The key's place in the seeded random order of training documents, 64 bits."""
    content = key.to_bytes(8, "little") + seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def choose_threshold(units: Sequence[float], fraction: float, min_documents: int) -> float:
    """``fraction``, or just so much more that at least ``min_documents`` distinct texts are validation.

    Raises:
        DataError: that would leave less than half of the documents for training.
    """
    ordered = np.sort(np.asarray(units, dtype=np.float64))
    if int(np.searchsorted(ordered, fraction, side="left")) >= min_documents:
        return fraction
    if 2 * min_documents > len(ordered):
        raise DataError(
            f"{len(ordered)} documents cannot give {min_documents} for validation and keep half for training. "
            f"Give more text, or lower data.validation.min_documents to {len(ordered) // 2} or less "
            "(one long document counts as one: cut it into pieces first)."
        )
    return float(np.nextafter(ordered[min_documents - 1], 1.0))
