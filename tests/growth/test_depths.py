from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import RecipeError
from inheritune.growth.depths import depth_schedule


def test_the_published_schedule_of_gpt2_medium_starts_at_half_and_adds_two():
    assert depth_schedule(24, start=12, step=2, max_depth=16) == [12, 14, 16]


def test_the_deepest_allowed_child_is_tried_even_off_the_step():
    assert depth_schedule(8, start=4, step=2, max_depth=None) == [4, 6, 7]


def test_a_reference_of_one_layer_has_one_child():
    assert depth_schedule(1, start=1, step=2, max_depth=None) == [1]


@pytest.mark.parametrize(("start", "max_depth"), [(0, None), (9, None), (4, 3), (4, 9)])
def test_depths_beyond_the_reference_are_refused_with_the_range_that_works(start, max_depth):
    with pytest.raises(RecipeError, match=r"Set growth\.\w+ from \d+ to 8"):
        depth_schedule(8, start=start, step=2, max_depth=max_depth)


@given(depth=st.integers(2, 200), data=st.data(), step=st.integers(1, 20))
def test_depths_rise_from_start_to_the_deepest(depth, data, step):
    start = data.draw(st.integers(1, depth - 1))
    deepest = data.draw(st.integers(start, depth))
    depths = depth_schedule(depth, start=start, step=step, max_depth=deepest)
    assert depths[0] == start
    assert depths[-1] == deepest
    assert all(0 < after - before <= step for before, after in pairwise(depths))
