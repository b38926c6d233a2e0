"""Paired intervals over documents."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.errors import EvaluationError

DRAWS_AT_ONCE = 500
"""Resamples held in memory together."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, in nats per token unless said otherwise."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def token_mean(sums: npt.NDArray[np.float64]) -> float:
    """Token-weighted mean of per-document (nats, tokens), shape (documents, 2), in nats per token."""
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def paired_bootstrap(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of a minus mean of b, with the percentile bootstrap over documents drawn for both at once.

    Documents, not tokens, are drawn: tokens of one document are not independent.

    Args:
        a: float64 (documents, 2): summed nats and tokens per document.
        b: the same documents in the same order under another model.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        EvaluationError: the shapes differ, or there is no document with a token.

    Source: percentile bootstrap, Efron and Tibshirani 1993, 13.3.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[1:] != (2,):
        raise EvaluationError(
            f"paired scores need the same documents, got shapes {a.shape} and {b.shape}. "
            "Score both models on the same validation set."
        )
    if not len(a) or not a[:, 1].all() or not b[:, 1].all():
        raise EvaluationError("a paired interval needs at least one document, and a token in every document.")
    num_documents = len(a)
    generator = np.random.default_rng(seed)
    means = []
    for begin in range(0, draws, DRAWS_AT_ONCE):
        size = (min(DRAWS_AT_ONCE, draws - begin), num_documents)
        chosen = generator.integers(num_documents, size=size)
        sums_a, sums_b = a[chosen].sum(axis=1), b[chosen].sum(axis=1)
        means.append(sums_a[:, 0] / sums_a[:, 1] - sums_b[:, 0] / sums_b[:, 1])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(mean=token_mean(a) - token_mean(b), low=float(low), high=float(high))
