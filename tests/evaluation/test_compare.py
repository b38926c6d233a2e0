import json
import math
import shutil

import pytest

from inheritune.data.shards import prepare
from inheritune.data.tokenizer import train_tokenizer
from inheritune.errors import DataError, EvaluationError, RecipeError
from inheritune.evaluation.compare import evaluate_loss, texts_to_score
from inheritune.evaluation.generation import write

TEXTS = [f"The child keeps the first layers of the reference, number {number}. " * 3 for number in range(12)]


@pytest.fixture
def text_files(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def test_loss_perplexity_and_bits_per_byte_agree_with_each_other(save_reference, text_files, tmp_path):
    model = save_reference("llama", tmp_path / "model")
    found = evaluate_loss(str(model), data=str(text_files), sequence_length=64)
    (score,) = found.scores
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (score.documents, score.tokens, found.num_bytes) == (12, num_bytes, num_bytes)  # a byte is a token here
    assert score.perplexity == pytest.approx(math.exp(score.loss_nats))
    assert score.bits_per_byte == pytest.approx(score.loss_nats / math.log(2))
    assert found.to_json()["scores"][0]["model"] == str(model)


def test_a_model_against_its_copy_differs_by_nothing(save_reference, text_files, tmp_path):
    model = save_reference("llama", tmp_path / "model")
    copy = shutil.copytree(model, tmp_path / "copy")
    (difference,) = evaluate_loss(model, data=text_files, against=copy).differences
    assert difference.unit == "nats per token"
    assert (difference.interval.mean, difference.interval.low, difference.interval.high) == (0.0, 0.0, 0.0)


def test_models_with_different_tokenizers_are_compared_in_bits_per_byte(save_reference, text_files, tmp_path):
    first = save_reference("llama", tmp_path / "first", vocab_size=300)
    second = save_reference("llama", tmp_path / "second", with_tokenizer=False, vocab_size=300)
    tokenizer = train_tokenizer(TEXTS, 300, tmp_path / "tokenizer")
    for path in tokenizer.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    found = evaluate_loss(str(second), data=str(text_files), against=[str(first)])
    (difference,) = found.differences
    second_score, first_score = found.scores
    assert second_score.tokens < first_score.tokens
    assert difference.unit == "bits per byte"
    assert difference.interval.mean == pytest.approx(second_score.bits_per_byte - first_score.bits_per_byte)
    assert "bits per byte (95 %, paired over documents)" in found.table()


def test_shards_give_their_validation_half_however_they_are_named(save_reference, text_files, tmp_path, monkeypatch):
    model = save_reference("llama", tmp_path / "model")
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"text": f"{number}: {text}"}) + "\n" for number in range(40) for text in TEXTS))
    shards = prepare(str(many), tmp_path / "shards", tokenizer=model, min_documents=8)
    halves = {half: shards.validation_texts(half) for half in ("decide", "watch")}
    for half, texts in halves.items():
        assert texts_to_score([tmp_path / "shards"], half, "text") == texts
        assert texts_to_score([tmp_path / "shards", text_files], half, "text") == [*texts, *TEXTS]
        monkeypatch.setenv("HOME", str(tmp_path))
        assert texts_to_score(["~/shards"], half, "text") == texts
    with pytest.raises(DataError, match=r"shards holds shards that were prepared, not raw text"):
        texts_to_score([str(tmp_path / "sh*")], "decide", "text")
    with pytest.raises(DataError, match=r"shards holds shards that were prepared, not raw text"):
        prepare(str(tmp_path / "shards"), tmp_path / "again", tokenizer=model)


def test_no_model_is_refused(text_files):
    with pytest.raises(EvaluationError, match="no model is named"):
        evaluate_loss([], data=text_files)


def test_text_without_a_word_is_refused(save_reference, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(EvaluationError, match="no text to score"):
        evaluate_loss(str(save_reference("llama", tmp_path / "model")), data=str(tmp_path / "empty.txt"))


def test_windows_beyond_a_table_of_positions_are_refused_and_beyond_computed_ones_warned_about(
    save_reference, text_files, tmp_path
):
    learned = str(save_reference("gpt2", tmp_path / "learned"))
    with pytest.raises(EvaluationError, match="Give 1 to 128"):
        evaluate_loss(learned, data=str(text_files), sequence_length=0)
    with pytest.raises(RecipeError, match="a table of 128"):
        evaluate_loss(learned, data=str(text_files), sequence_length=129)
    rotary = str(save_reference("llama", tmp_path / "rotary"))
    assert "was made for 128 positions" in evaluate_loss(rotary, data=str(text_files), sequence_length=129).table()


def test_few_documents_are_warned_about_beside_the_interval(save_reference, text_files, tmp_path):
    model = str(save_reference("llama", tmp_path / "model"))
    assert "an interval over 12 documents shows nothing" in evaluate_loss(model, data=text_files, against=model).table()
    for number in range(30):
        (text_files / f"more-{number}.txt").write_text(f"more {number}", encoding="utf-8")
    assert "an interval over 42 documents is uncertain" in evaluate_loss(model, data=text_files, against=model).table()
    assert evaluate_loss(model, data=text_files).warnings == ()


def test_a_token_id_beyond_the_embedding_is_refused(save_reference, text_files, tmp_path):
    model = str(save_reference("llama", tmp_path / "model", vocab_size=100, bos_token_id=1, eos_token_id=1))
    with pytest.raises(EvaluationError, match=r"token id \d+, and its embedding has 100 rows"):
        evaluate_loss(model, data=text_files)
    with pytest.raises(EvaluationError, match=r"token id \d+, and its embedding has 100 rows"):
        write(model, ["a prompt"])
