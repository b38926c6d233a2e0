"""Law 4: each document alone, end-of-text in front, disjoint windows, float32, token-weighted."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inheritune.errors import EvaluationError
from inheritune.evaluation import token_loss
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents

OPENING = 256


def documents(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [np.array([OPENING, *generator.integers(0, 256, length)], dtype=np.uint16) for length in lengths]


def by_hand(model, document, window):
    """The plain definition: one window after the other, no batch, no padding."""
    nats = 0.0
    for begin in range(0, len(document) - 1, window):
        piece = torch.from_numpy(document[begin : begin + window + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=piece[None, :-1], use_cache=False).logits[0]
        nats += F.cross_entropy(logits.double(), piece[1:], reduction="sum").item()
    return nats


def test_scores_are_those_of_the_plain_definition(family, build_model):
    model = build_model(family)
    texts = documents([1, 5, 16, 17, 40])
    sums = score_documents(model, texts, sequence_length=16)
    assert sums[:, 1].tolist() == [1, 5, 16, 17, 40]  # every token after the opening one, exactly once
    expected = [by_hand(model, text, 16) for text in texts]
    assert sums[:, 0] == pytest.approx(expected, rel=1e-5)  # float32 against float64 log-sum-exp


def test_validation_loss_does_not_depend_on_batch_size(build_model):
    model = build_model("llama")
    texts = documents([3, 30, 31, 64, 7, 90])
    whole = score_documents(model, texts, sequence_length=32)
    for tokens_at_once in (1, 33, 100):
        again = score_documents(model, texts, sequence_length=32, tokens_at_once=tokens_at_once)
        assert again == pytest.approx(whole, rel=1e-5)


def test_a_document_does_not_see_its_neighbours(build_model):
    model = build_model("qwen3")
    texts = documents([20, 50, 10])
    together = score_documents(model, texts, sequence_length=32)
    for index, text in enumerate(texts):
        assert score_documents(model, [text], sequence_length=32)[0] == pytest.approx(together[index], rel=1e-5)


def test_logits_a_few_at_a_time_and_the_model_s_own_forward_give_the_same(build_model, monkeypatch):
    model, texts = build_model("gemma2"), documents([20, 50, 10])
    whole = score_documents(model, texts, sequence_length=32)
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", 260 * 7)
    assert score_documents(model, texts, sequence_length=32) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(token_loss, "split_head", lambda model: None)
    assert score_documents(model, texts, sequence_length=32) == pytest.approx(whole, rel=1e-5)


def test_a_uniform_model_scores_the_logarithm_of_its_vocabulary(build_model):
    model = build_model("llama")
    model.get_output_embeddings().weight.data.zero_()
    sums = score_documents(model, documents([10, 20]), sequence_length=16)
    assert token_mean(sums) == pytest.approx(np.log(260), rel=1e-6)


def test_the_model_keeps_its_mode(build_model):
    model = build_model("gpt2").train()
    score_documents(model, documents([5]), sequence_length=16)
    assert model.training


def test_freed_memory_is_given_back_before_and_after_even_where_it_was_stopped(build_model, monkeypatch):
    told = []

    @contextmanager
    def given_back():
        told.append("before")
        try:
            yield
        finally:
            told.append("after")

    def stop():
        told.append("scores")
        raise KeyboardInterrupt

    monkeypatch.setattr(token_loss, "freed_memory_given_back", given_back)

    with pytest.raises(KeyboardInterrupt):
        score_documents(build_model("llama"), documents([5]), sequence_length=8, check_stop=stop)
    assert told == ["before", "scores", "after"]


def test_weights_that_are_not_finite_are_an_error_and_not_a_score(build_model):
    model = build_model("llama")
    model.get_output_embeddings().weight.data[3] = float("nan")
    with pytest.raises(EvaluationError, match="document 0 is not finite"):
        score_documents(model, documents([5]), sequence_length=16)


def test_a_document_without_a_token_is_refused(build_model):
    with pytest.raises(EvaluationError, match="document 1 has no token"):
        score_documents(build_model("llama"), documents([5, 0]), sequence_length=16)


def test_a_stop_is_taken_between_batches(build_model):
    def stop():
        raise RuntimeError("asked to stop")

    with pytest.raises(RuntimeError, match="asked to stop"):
        score_documents(build_model("llama"), documents([5]), sequence_length=16, check_stop=stop)


def test_out_of_memory_halves_the_batch_and_changes_no_score(build_model, monkeypatch):
    model, texts = build_model("llama"), documents([16] * 9)
    whole = score_documents(model, texts, sequence_length=16)
    honest, sizes = token_loss._score_batch, []

    def small_machine(model, split, ids_BT, targets_BT, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return honest(model, split, ids_BT, targets_BT, batch)

    monkeypatch.setattr(token_loss, "_score_batch", small_machine)
    assert score_documents(model, texts, sequence_length=16) == pytest.approx(whole, rel=1e-6)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]

    def no_memory(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(token_loss, "_score_batch", no_memory)
    with pytest.raises(EvaluationError, match="one window of 16 tokens"):
        score_documents(model, texts, sequence_length=16)
