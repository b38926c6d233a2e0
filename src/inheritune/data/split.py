"""Which side of the split a text is on, and the seeded order of training documents: pure functions of the text.

The side depends on the text alone, so a duplicate cannot be on both sides and the validation set does not depend on
the seed.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from inheritune.errors import DataError

Side = Literal["train", "watch", "decide"]

UNIT_BITS = 53
"""Bits of the key that make its unit: as many as a float64 holds exactly. The lowest bit of the key is not of them."""

FEW_DOCUMENTS = 100
"""Under so many decide documents a verdict is uncertain, and a warning is recorded."""

TOO_FEW_DOCUMENTS = 30
"""Under so many decide documents there is no verdict."""

_MASK = 2**64 - 1


def text_key(text: str) -> int:
    """64-bit unsigned hash of the text: blake2b of its UTF-8 bytes, without a seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unit(key: int) -> float:
    """The key's upper 53 bits as a number in [0, 1)."""
    return (key >> (64 - UNIT_BITS)) / (1 << UNIT_BITS)


def units(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """``unit`` of every key."""
    return np.asarray((keys >> np.uint64(64 - UNIT_BITS)) / (1 << UNIT_BITS), dtype=np.float64)


def side(key: int, threshold: float) -> Side:
    """Validation where the unit is below ``threshold``; the key's lowest bit, which no unit sees, says which half."""
    if unit(key) >= threshold:
        return "train"
    return "decide" if key & 1 else "watch"


def order_key(key: int, seed: int) -> int:
    """64-bit place of a document in the random order of ``seed``; different keys never share a place."""
    return _mix(key ^ _mix(seed & _MASK))


def order_keys(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """``order_key`` of every key."""
    mixed = keys ^ np.uint64(_mix(seed & _MASK))
    mixed = mixed + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def _mix(value: int) -> int:
    """A fixed permutation of the 64-bit numbers (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def choose_threshold(units: Sequence[float] | npt.NDArray[np.float64], fraction: float, min_documents: int) -> float:
    """``fraction``, raised just enough that at least ``min_documents`` texts are validation.

    Args:
        units: of the distinct texts, each in [0, 1).
        fraction: part of the documents asked for as validation, in [0, 1).
        min_documents: the fewest validation documents.

    Raises:
        DataError: ``fraction`` out of range, or ``min_documents`` would leave less than half of the documents for
            training.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"the validation fraction is {fraction}: give a number from 0 up to, but not including, 1.")
    values = np.asarray(units, dtype=np.float64)
    if int((values < fraction).sum()) >= min_documents:
        return fraction
    if 2 * min_documents > len(values):
        fewer = (
            f", or lower the fewest validation documents (data.validation.min_documents, or --min-documents; at most "
            f"{len(values) // 2} here)"
            if len(values) > 1
            else ""
        )
        raise DataError(
            f"there are {len(values)} different documents, and {min_documents} of them are to be validation: that "
            "leaves less than half for training. Add sources, cut long files into documents (one JSON line each)"
            f"{fewer}."
        )
    kth = np.partition(values, min_documents - 1)[min_documents - 1]
    return float(np.nextafter(kth, 1.0))
