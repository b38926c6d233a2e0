import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.recipe import TrainRecipe
from inheritune.training.schedule import plan_schedule


def rates(num_steps, **settings):
    schedule = plan_schedule(TrainRecipe(peak_lr=1.0, **settings), num_steps)
    return [schedule.rate(step) for step in range(num_steps)]


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


@given(
    num_steps=st.integers(1, 300),
    more=st.integers(0, 300),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
)
def test_a_longer_schedule_is_the_same_up_to_where_the_shorter_one_cools_down(num_steps, more, warmup, cooldown):
    recipe = TrainRecipe(peak_lr=1.0, warmup_fraction=warmup, cooldown_fraction=cooldown)
    short = plan_schedule(recipe, num_steps)
    long = short.extended(num_steps + more, cooldown)
    assert long.num_steps == num_steps + more
    assert short.open_step <= long.open_step
    assert [short.rate(step) for step in range(short.open_step)] == [long.rate(step) for step in range(short.open_step)]


def test_a_cosine_has_no_place_to_go_on_from():
    assert plan_schedule(TrainRecipe(schedule="cosine"), 100).open_step is None
