"""Paired intervals over documents."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.errors import EvaluationError

DRAWS_AT_ONCE = 500
"""Resamples held in memory together."""

FEW_KINDS = 64
"""Items that come in so few kinds (right or wrong under both models) are drawn by counts, however many there are."""


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
    kinds, counts = np.unique(np.concatenate([a, b], axis=1), axis=0, return_counts=True)
    if len(kinds) <= min(FEW_KINDS, num_documents // 4):
        sums = generator.multinomial(num_documents, counts / num_documents, size=draws) @ kinds
        differences = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
        low, high = np.quantile(differences, [0.025, 0.975])
        return Interval(mean=token_mean(a) - token_mean(b), low=float(low), high=float(high))
    means = []
    for begin in range(0, draws, DRAWS_AT_ONCE):
        size = (min(DRAWS_AT_ONCE, draws - begin), num_documents)
        chosen = generator.integers(num_documents, size=size)
        sums_a, sums_b = a[chosen].sum(axis=1), b[chosen].sum(axis=1)
        means.append(sums_a[:, 0] / sums_a[:, 1] - sums_b[:, 0] / sums_b[:, 1])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(mean=token_mean(a) - token_mean(b), low=float(low), high=float(high))


def standard_error(values: npt.NDArray[np.float64]) -> float:
    """Of the quotient of sums, values (items, 2): that of a mean where all weights are 1.

    Raises:
        EvaluationError: fewer than two items.

    Source: linearised ratio, Cochran 1977, 2.11; Bessel's correction as lm_eval's ``mean_stderr`` has it.
    """
    if len(values) < 2:
        raise EvaluationError("a standard error needs two items. Score more of them.")
    rests = values[:, 0] - token_mean(values) * values[:, 1]
    return float(rests.std(ddof=1) / values[:, 1].mean() / np.sqrt(len(values)))


def mcnemar(only_a: int, only_b: int) -> float:
    """How likely two equally good models differ so much on what one of them alone got right; exact, two-sided.

    Args:
        only_a: items that the first model alone got right.
        only_b: items that the second alone got right.

    Source: McNemar 1947; the binomial test of the discordant pairs.
    """
    from scipy.stats import binomtest  # with lm_eval

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
