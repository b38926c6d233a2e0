import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.analysis.suggest import SHARE, suggest
from inheritune.evaluation.statistics import Interval


def costs_of(*means):
    return [Interval(mean, mean - 0.01, mean + 0.01) for mean in means]


def test_the_costliest_layers_are_kept_in_their_order():
    found = suggest(costs_of(5.0, 0.1, 2.0, -0.02, 1.0))
    assert (found.depth, found.layers) == (3, (0, 2, 4))
    assert "the 3 costliest of 5 layers hold 99%" in found.reason
    assert "the cheapest is layer 3 (-0.0200 nats [-0.0300, -0.0100])" in found.reason
    assert "without layer 3 the loss is not higher" in found.reason


def test_where_no_layer_costs_anything_one_is_a_start():
    assert suggest(costs_of(-0.5, -0.1, -0.2)).depth == 1


def test_one_layer_is_one_layer():
    found = suggest(costs_of(0.3))
    assert (found.depth, found.layers) == (1, (0,))


@given(st.lists(st.floats(-1, 10), min_size=1, max_size=30))
def test_the_start_holds_the_share_and_no_smaller_one_does(means):
    found = suggest(costs_of(*means))
    worth = sorted((max(0.0, mean) for mean in means), reverse=True)
    total = sum(worth)
    assert 1 <= found.depth == len(found.layers) <= len(means)
    assert list(found.layers) == sorted(set(found.layers))
    assert sum(max(0.0, means[layer]) for layer in found.layers) == pytest.approx(sum(worth[: found.depth]))
    if found.depth > 1:
        assert sum(worth[: found.depth - 1]) < SHARE * total * (1 + 1e-12)
    assert sum(worth[: found.depth]) >= SHARE * total * (1 - 1e-12)
