"""What a score is worth nothing below: guessing, and always giving the commonest answer, from the items themselves.

Values are float64 (items, 2): what an item adds to a score, and its weight; a score is the quotient of the sums. So
accuracies (weight 1) and bits per byte (weight: bytes) are treated alike.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from inheritune.evaluation.harness import Item

Values = npt.NDArray[np.float64]

LOWER_IS_BETTER = frozenset({"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity"})
"""Metrics of which less is better."""

BITS_OF_A_BYTE = 8.0
"""Bits per byte of a model that holds every byte to be as likely as another."""

ACCURACIES = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match"})
"""Metrics that guessing has a share of."""


def values(items: Sequence[Item], metric: str) -> Values:
    """What each item adds to a metric.

    Raises:
        KeyError: an item without that metric.
    """
    if metric == "bits_per_byte":  # lm_eval keeps (log-probability, bytes)
        pairs = [item.metrics[metric] for item in items]
        return np.array([(-nats / math.log(2), weight) for nats, weight in pairs], dtype=np.float64)
    return np.array([(item.metrics[metric], 1.0) for item in items], dtype=np.float64)


def chance(items: Sequence[Item], metric: str) -> Values | None:
    """What guessing gives on each item; None for a metric that guessing has no share of."""
    if metric == "bits_per_byte":
        weights = values(items, metric)[:, 1]
        return np.stack([BITS_OF_A_BYTE * weights, weights], axis=1)
    if metric not in ACCURACIES:
        return None
    shares = [_right(item) / len(item.choices) if len(item.choices) > 1 else 0.0 for item in items]
    return np.stack([shares, np.ones(len(items))], axis=1)


def majority(items: Sequence[Item], metric: str) -> Values | None:
    """What the commonest answer gives; None where the answers are not the same words in every item.

    A model that is blind to the question can still prefer a word. It cannot prefer a place: choices are scored alone.
    """
    if metric not in ACCURACIES:
        return None
    if all(len(item.choices) == 1 for item in items):
        commonest = Counter(item.choices[0] for item in items).most_common(1)[0][0]
        hits = [item.choices[0] == commonest for item in items]
    elif len({item.choices for item in items}) == 1 and len(items[0].choices) > 1 and not items[0].truths:
        labels = [label(item) for item in items]
        if any(each is None for each in labels):
            return None
        hits = [each == Counter(labels).most_common(1)[0][0] for each in labels]
    else:
        return None
    return np.stack([np.array(hits, dtype=np.float64), np.ones(len(items))], axis=1)


def label(item: Item) -> int | None:
    """Index of the right choice; of two it can be told from what was answered and whether that was right."""
    if isinstance(item.target, int):
        return item.target
    if len(item.choices) == 2 and "acc" in item.metrics:
        answered = int(np.argmax([answer.log_probability for answer in item.answers]))
        return answered if item.metrics["acc"] else 1 - answered
    return None


def _right(item: Item) -> int:
    """How many choices of an item are right."""
    if item.truths:
        return len(item.truths)
    return len(item.target) if isinstance(item.target, list | tuple) else 1
