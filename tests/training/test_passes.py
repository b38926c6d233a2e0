import pytest

from inheritune.training.passes import warning_of_passes


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_up_to_four_passes_need_no_warning(passes):
    assert warning_of_passes(passes) is None


@pytest.mark.parametrize("passes", [5, 8, 100])
def test_above_four_passes_the_warning_says_what_is_known_and_what_helps(passes):
    said = warning_of_passes(passes)
    assert said.startswith(f"{passes} passes over the same text")
    for word in ("arXiv:2305.16264", "about 16", "dropout", "weight_decay", "average_half_life", "8 times"):
        assert word in said
