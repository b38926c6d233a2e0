import pytest

from inheritune.errors import EvaluationError
from inheritune.evaluation.generation import distinct_n, write


def test_greedy_writing_repeats_itself_and_sampling_follows_its_seed(save_reference, tmp_path):
    model = save_reference("llama", tmp_path / "model")
    assert write(model, ["the layer"], max_new_tokens=8) == write(model, ["the layer"], max_new_tokens=8)
    sampled = [write(model, ["the layer"], max_new_tokens=8, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_prompt_does_not_change_what_follows_another(save_reference, tmp_path):
    model = save_reference("gpt2", tmp_path / "model")
    alone = write(model, ["deep"], max_new_tokens=6)
    assert write(model, ["a longer prompt", "deep"], max_new_tokens=6)[1:] == alone


def test_writing_ends_at_the_last_position(save_reference, tmp_path):
    model = save_reference("gpt2", tmp_path / "model")
    (text,) = write(model, ["x" * 120], max_new_tokens=1000)
    assert len(text) <= 7  # 128 positions, the opening token and 120 bytes of prompt


def test_a_prompt_that_fills_the_positions_is_refused(save_reference, tmp_path):
    with pytest.raises(EvaluationError, match="shorter prompt"):
        write(save_reference("gpt2", tmp_path / "model"), ["x" * 128])


def test_distinct_n_counts_different_ngrams():
    assert distinct_n(["a b a b a b"], 2) == pytest.approx(2 / 5)
    assert distinct_n(["a b c d"], 2) == 1.0
    assert distinct_n(["a"], 2) == 0.0
