import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.training.schedule import learning_rate


def rates(num_steps, **settings):
    return [learning_rate(step, num_steps=num_steps, peak=1.0, **settings) for step in range(num_steps)]


def test_warm_up_is_linear_and_ends_at_the_peak():
    assert rates(100, warmup_fraction=0.1)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_wsd_holds_the_peak_then_cools_down_by_one_minus_sqrt():
    curve = rates(100, warmup_fraction=0.1, cooldown_fraction=0.2)
    assert curve[10:80] == [1.0] * 70
    assert curve[80:] == pytest.approx([1 - ((step + 1) / 21) ** 0.5 for step in range(20)])


def test_cosine_ends_near_a_tenth_of_the_peak():
    curve = rates(1000, schedule="cosine", warmup_fraction=0.02)
    assert curve[-1] == pytest.approx(0.1, abs=1e-4)
    assert max(curve) == curve[20] == pytest.approx(1.0)


@given(
    num_steps=st.integers(1, 500),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
    schedule=st.sampled_from(["wsd", "cosine"]),
)
def test_every_step_of_every_schedule_has_a_positive_rate_up_to_the_peak(num_steps, warmup, cooldown, schedule):
    curve = rates(num_steps, warmup_fraction=warmup, cooldown_fraction=cooldown, schedule=schedule)
    assert all(0 < rate <= 1 for rate in curve)
