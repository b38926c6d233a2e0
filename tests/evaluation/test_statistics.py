import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune.errors import EvaluationError
from inheritune.evaluation.statistics import Interval, paired_bootstrap, token_mean


def scores(num_documents, seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(10, 500, num_documents).astype(float)
    return np.stack([tokens * generator.normal(3.0, 0.5, num_documents), tokens], axis=1)


def test_the_mean_weighs_every_token_alike():
    assert token_mean(np.array([[10.0, 10.0], [90.0, 30.0]])) == pytest.approx(2.5)


def test_a_constant_shift_has_an_interval_of_width_zero():
    a = scores(50, seed=1)
    b = a - np.stack([0.25 * a[:, 1], np.zeros(50)], axis=1)
    interval = paired_bootstrap(a, b)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_the_models_mirrors_the_interval(seed):
    a, b = scores(30, seed), scores(30, seed)
    b[:, 0] += np.random.default_rng(seed + 1).normal(0, 5, 30)
    forth, back = paired_bootstrap(a, b, draws=400), paired_bootstrap(b, a, draws=400)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_the_interval_covers_a_true_difference_of_zero_about_95_times_in_100():
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        tokens = np.full(60, 100.0)
        a = np.stack([300 + generator.normal(0, 10, 60), tokens], axis=1)
        b = np.stack([300 + generator.normal(0, 10, 60), tokens], axis=1)
        interval = paired_bootstrap(a, b, draws=500, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 180 <= covered <= 198  # binomial(200, 0.95): 99.9 % of samples fall inside


def test_the_same_seed_gives_the_same_interval():
    a, b = scores(40, 1), scores(40, 1) + np.array([1.0, 0.0])
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)


def test_scores_of_different_documents_are_refused():
    with pytest.raises(EvaluationError, match="same documents"):
        paired_bootstrap(scores(3, 0), scores(4, 0))


def test_no_document_at_all_is_refused():
    with pytest.raises(EvaluationError, match="at least one document"):
        paired_bootstrap(np.zeros((0, 2)), np.zeros((0, 2)))


def test_an_interval_becomes_json():
    assert Interval(0.1, 0.0, 0.2).to_json() == {"mean": 0.1, "low": 0.0, "high": 0.2}
