import json

import pytest

from inheritune.surgery.token_ids import (
    Vocabulary,
    has_tokenizer,
    judge_special_ids,
    judge_vocabulary,
    read_vocabulary,
)

SMALL = Vocabulary("tokenizer.json", frozenset(range(10)), frozenset({10}))


def test_ids_are_those_of_the_tokenizer_itself(save_reference, tmp_path):
    folder = save_reference("llama", tmp_path / "reference")
    vocabulary = read_vocabulary(folder, ["tokenizer.json"])
    assert vocabulary.all == frozenset(range(257)) and vocabulary.added == {256}


def test_older_files_and_lists_of_pieces_are_read_too(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<end>": 7}))
    assert read_vocabulary(tmp_path, ["vocab.json", "added_tokens.json"]).all == {0, 1, 7}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}))
    assert read_vocabulary(tmp_path, ["tokenizer.json", "vocab.json"]).all == {0, 1}


def test_file_that_may_not_be_read_is_not(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert read_vocabulary(tmp_path, []) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": {"a": "x"}}}', '{"model": 3}'])
def test_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError):
        read_vocabulary(tmp_path, ["tokenizer.json"])


@pytest.mark.parametrize(("names", "is_one"), [
    (["tokenizer.json"], True), (["x.tiktoken"], True), (["tokenizer.model"], True), (["tokenizer_config.json"], False),
])  # fmt: skip
def test_any_tokenizer_counts_and_its_settings_alone_do_not(names, is_one):
    assert has_tokenizer(names) is is_one


@pytest.mark.parametrize(("num_rows", "severities"), [(11, []), (12, []), (10, ["warning"]), (9, ["fault"])])
def test_token_without_a_row_is_a_fault_and_an_added_one_a_warning(num_rows, severities):
    assert [finding.severity for finding in judge_vocabulary(SMALL, num_rows)] == severities


@pytest.mark.parametrize(("value", "said"), [
    (None, []), (10, []), ([0, 10], []), ("x", []), (True, []),
    (11, ["no token of that id"]), (64, ["rows 0 to 63"]), (-1, ["rows 0 to 63"]), ([3, 70], ["rows 0 to 63"]),
])  # fmt: skip
def test_special_token_that_is_not_there_is_named(value, said):
    findings = judge_special_ids("config.json", {"eos_token_id": value}, 64, SMALL)
    assert len(findings) == len(said)
    for finding, words in zip(findings, said, strict=True):
        assert words in finding.what and finding.where == "config.json: eos_token_id"
        assert finding.severity == "warning"
