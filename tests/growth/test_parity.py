import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.evaluation.statistics import Interval
from inheritune.growth.parity import decide


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.03, -0.01, "better"),
        (-0.03, 0.0, "better"),
        (-0.01, 0.005, "parity"),
        (0.002, 0.01, "parity"),
        (0.002, 0.0101, "not shown"),
        (-0.5, 0.5, "not shown"),
    ],
)
def test_the_upper_end_of_the_interval_decides(low, high, verdict):
    assert decide(Interval((low + high) / 2, low, high), margin=0.01) == verdict


finite = st.floats(-10, 10)


@given(high=finite, margin=st.floats(0, 1), more=st.floats(0, 1))
def test_a_wider_margin_never_takes_parity_away(high, margin, more):
    interval = Interval(high - 1, high - 2, high)
    if decide(interval, margin) != "not shown":
        assert decide(interval, margin + more) != "not shown"
