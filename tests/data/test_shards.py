import json
import os
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import zstandard

from inheritune.data import encoding
from inheritune.data import tokenizer as tokenizer_module
from inheritune.data.shards import Shards, check_vocabulary, prepare, training_texts
from inheritune.data.split import side, text_key
from inheritune.data.tokenizer import TextTokenizer, open_tokenizer, train_tokenizer
from inheritune.errors import DataError, Stopped

SMALL = {"min_documents": 30, "validation": 0.1}


@pytest.fixture
def corpus(tmp_path, texts, lines):
    """Two files of different texts; gives their paths."""
    many = texts(300)
    return [str(lines(tmp_path / "in" / "a.jsonl", many[:100])), str(lines(tmp_path / "in" / "b.jsonl", many[100:]))]


def contents(folder, leave_out=()):
    """File name -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }


def names(folder):
    """Names of what is in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def decoded(shards, split):
    """The texts that the tokens of a split spell."""
    opened, documents = open_tokenizer(shards.tokenizer), shards.sequence(split)
    return [opened.decode(documents.document(index)[1:].tolist()) for index in range(documents.num_documents)]


def test_two_preparations_give_the_same_bytes_whatever_the_batches_and_pieces(tmp_path, corpus, tokenizer, monkeypatch):
    first = prepare(corpus, tmp_path / "one", tokenizer=tokenizer, **SMALL)
    monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 50)
    second = prepare(corpus, tmp_path / "two", tokenizer=tokenizer, **SMALL)
    assert contents(first.folder) == contents(second.folder)
    assert first.sha256 == second.sha256


def test_the_order_of_sources_changes_only_their_list_in_the_manifest(tmp_path, corpus, tokenizer):
    first = prepare(corpus, tmp_path / "one", tokenizer=tokenizer, token_budget=2000, **SMALL)
    second = prepare(corpus[::-1], tmp_path / "two", tokenizer=tokenizer, token_budget=2000, **SMALL)
    assert contents(first.folder, ["manifest.json"]) == contents(second.folder, ["manifest.json"])
    assert first.sha256 == second.sha256
    assert first.manifest["splits"] == second.manifest["splits"]


def test_every_text_is_stored_once_on_the_side_of_its_hash(tmp_path, texts, lines, tokenizer):
    many = texts(300)
    source = lines(tmp_path / "a.jsonl", [*many, *many[:50], " \n", "", many[0]])
    shards = prepare(str(source), tmp_path / "out", tokenizer=tokenizer, **SMALL)
    stored = {split: decoded(shards, split) for split in ("train", "watch", "decide")}
    assert Counter(text for each in stored.values() for text in each) == Counter(many)
    for split, found in stored.items():
        assert {side(text_key(text), shards.manifest["threshold"]) for text in found} == {split}
    assert (shards.manifest["duplicates_dropped"], shards.manifest["empty_dropped"]) == (51, 2)
    assert shards.manifest["documents_read"] == 353


def test_the_seed_changes_the_training_order_and_not_the_validation_set(tmp_path, corpus, tokenizer):
    first, second = (prepare(corpus, tmp_path / str(s), tokenizer=tokenizer, seed=s, **SMALL) for s in (0, 1))
    assert decoded(first, "train") != decoded(second, "train")
    assert sorted(decoded(first, "train")) == sorted(decoded(second, "train"))
    for half in ("watch", "decide"):
        assert decoded(first, half) == decoded(second, half)


def test_the_tokenizers_texts_are_those_of_the_training_split(tmp_path, corpus, tokenizer):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    assert sorted(training_texts([*corpus, corpus[0]], **SMALL)) == sorted(decoded(shards, "train"))


@pytest.mark.parametrize("budget", [1, 2, 37, 2000])
def test_a_token_budget_is_met_exactly_and_is_an_opening_of_all_training_tokens(tmp_path, corpus, tokenizer, budget):
    everything = prepare(corpus, tmp_path / "all", tokenizer=tokenizer, **SMALL)
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, token_budget=budget, **SMALL)
    assert shards.sequence("train").num_tokens == shards.manifest["splits"]["train"]["tokens"] == budget
    whole = (everything.folder / "train-00000.bin").read_bytes()
    assert (shards.folder / "train-00000.bin").read_bytes() == whole[: 2 * budget]
    assert contents(shards.folder)["decide-00000.bin"] == contents(everything.folder)["decide-00000.bin"]


@pytest.mark.parametrize("guess", [1e-6, 1.0, 1e6])
def test_a_wrong_guess_of_tokens_per_byte_changes_nothing(tmp_path, corpus, tokenizer, monkeypatch, guess):
    right = prepare(corpus, tmp_path / "right", tokenizer=tokenizer, token_budget=3000, **SMALL)
    monkeypatch.setattr("inheritune.data.shards.tokens_per_byte", lambda *_: guess)
    wrong = prepare(corpus, tmp_path / "wrong", tokenizer=tokenizer, token_budget=3000, **SMALL)
    assert contents(right.folder) == contents(wrong.folder)


def test_a_budget_above_the_data_is_refused_with_both_numbers_and_one_equal_to_it_is_met(tmp_path, corpus, tokenizer):
    held = prepare(corpus, tmp_path / "all", tokenizer=tokenizer, **SMALL).sequence("train").num_tokens
    exact = prepare(corpus, tmp_path / "exact", tokenizer=tokenizer, token_budget=held, **SMALL)
    assert exact.sequence("train").num_tokens == held
    message = rf"asks for {held + 1} training tokens, .* holds {held}\. Lower data\.token_budget .* train\.passes"
    with pytest.raises(DataError, match=message):
        prepare(corpus, tmp_path / "out", tokenizer=tokenizer, token_budget=held + 1, **SMALL)
    assert names(tmp_path) == ["all", "exact", "in"]


@pytest.mark.parametrize("budget", [None, 3001])
def test_the_manifests_numbers_equal_a_recount(tmp_path, corpus, tokenizer, budget):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, token_budget=budget, shard_tokens=500, **SMALL)
    largest = 0
    assert len(shards.manifest["splits"]["train"]["shards"]) > 3
    for split, said in shards.manifest["splits"].items():
        documents = shards.sequence(split)
        stored = [documents.document(index) for index in range(documents.num_documents)]
        assert said["documents"] == len(stored) == sum(each["documents"] for each in said["shards"])
        assert said["tokens"] == sum(map(len, stored)) == documents.num_tokens == documents.lengths.sum()
        num_bytes = sum(len(text.encode()) for text in decoded(shards, split))
        assert said["bytes"] == documents.num_bytes == documents.byte_lengths.sum()
        if budget is None or split != "train":
            assert said["bytes"] == num_bytes  # a cut document may end inside of a character
        for name in ("tokens", "documents", "bytes"):
            assert said[name] == sum(domain[name] for domain in said["domains"].values())
        assert sorted(said["domains"]) == ["a", "b"]
        assert all(document[0] == shards.manifest["end_of_text_id"] for document in stored)
        assert all(each["tokens"] <= 500 or each["documents"] == 1 for each in said["shards"])
        largest = max(largest, *(int(document.max()) for document in stored))
    assert shards.manifest["max_token_id"] == largest
    assert shards.manifest["splits"]["train"]["tokens"] == budget or budget is None


def test_the_validation_tokens_spell_the_validation_texts(tmp_path, corpus, tokenizer):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, document_bytes=50, **SMALL)
    raw = zstandard.ZstdDecompressor().decompress((shards.folder / "validation.jsonl.zst").read_bytes())
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    for half in ("watch", "decide"):
        found = decoded(shards, half)
        assert [row["text"] for row in rows if row["split"] == half] == found == shards.validation_texts(half)
        assert all(len(text.encode()) <= 50 for text in found)
        assert any(len(text.encode()) > 46 for text in found)  # cut as late as a character allows
    assert {row["domain"] for row in rows} == {"a", "b"}


def test_at_most_max_documents_are_kept_for_validation_and_the_rest_is_not_trained_on(tmp_path, corpus, tokenizer):
    many = prepare(corpus, tmp_path / "many", tokenizer=tokenizer, **SMALL)
    few = prepare(corpus, tmp_path / "few", tokenizer=tokenizer, max_documents=10, **SMALL)
    kept = [text for half in ("watch", "decide") for text in decoded(few, half)]
    assert len(kept) == 10
    assert few.manifest["validation_left_out"] > 0
    assert decoded(few, "train") == decoded(many, "train")
    for half in ("watch", "decide"):
        assert decoded(few, half) == decoded(many, half)[: len(decoded(few, half))]


def test_few_decide_documents_are_a_recorded_warning(tmp_path, corpus, tokenizer, texts, lines):
    (warning,) = prepare(corpus, tmp_path / "few", tokenizer=tokenizer, **SMALL).manifest["warnings"]
    assert "only 19 validation documents in the decide half: no verdict will be given (30 are needed)" in warning
    some = str(lines(tmp_path / "some.jsonl", texts(300, words=4)))
    (warning,) = prepare(some, tmp_path / "some", tokenizer=tokenizer, min_documents=100).manifest["warnings"]
    assert "the verdict's interval will be wide (100 make it reliable)" in warning
    source = str(lines(tmp_path / "many.jsonl", texts(700, words=4)))
    assert prepare(source, tmp_path / "many", tokenizer=tokenizer, min_documents=300).manifest["warnings"] == []


def test_too_few_documents_and_an_empty_corpus_are_refused_and_leave_nothing(tmp_path, texts, lines, tokenizer):
    few = str(lines(tmp_path / "in" / "few.jsonl", texts(20)))
    with pytest.raises(DataError, match="there are 20 different documents, and 200"):
        prepare(few, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(DataError, match="no document is left for 'watch'"):
        prepare(few, tmp_path / "out", tokenizer=tokenizer, validation=0, min_documents=0)
    empty = str(lines(tmp_path / "in" / "empty.jsonl", ["", "  \n"]))
    with pytest.raises(DataError, match=r"the sources hold no text \(2 documents, all empty\)"):
        prepare(empty, tmp_path / "out", tokenizer=tokenizer)
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("name", ["token_budget", "max_documents", "document_bytes", "shard_tokens"])
def test_a_number_that_means_nothing_is_refused(tmp_path, corpus, tokenizer, name):
    with pytest.raises(DataError, match=f"{name} is 0"):
        prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **{name: 0})


def test_a_second_call_opens_what_is_there_and_other_settings_are_refused(tmp_path, corpus, tokenizer, monkeypatch):
    first = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    monkeypatch.setattr("inheritune.data.shards.look_over", None)  # nothing is read again
    assert prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL).sha256 == first.sha256
    with pytest.raises(DataError, match=r"other settings \(seed: 0 -> 1; token_budget: None -> 50\)"):
        prepare(corpus, tmp_path / "out", tokenizer=tokenizer, seed=1, token_budget=50, **SMALL)


def test_shards_of_another_tokenizer_are_refused_by_its_folder(tmp_path, corpus, texts, tokenizer):
    prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    other = train_tokenizer(texts(200, seed=1), 300, tmp_path / "other")
    with pytest.raises(DataError, match=rf"made with another tokenizer than the one that {other} holds now"):
        prepare(corpus, tmp_path / "out", tokenizer=other, **SMALL)


def test_a_folder_with_something_else_is_never_replaced(tmp_path, corpus, tokenizer):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and holds no shards"):
        prepare(corpus, tmp_path / "mine", tokenizer=tokenizer, **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_stopped_preparation_leaves_no_folder_and_the_next_one_is_whole(tmp_path, corpus, tokenizer, call):
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        prepare(corpus, tmp_path / "out", tokenizer=tokenizer, should_stop=stop, **SMALL)
    assert names(tmp_path) == ["in"]
    after = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, should_stop=lambda: None, **SMALL)
    assert after.sha256 == prepare(corpus, tmp_path / "other", tokenizer=tokenizer, **SMALL).sha256


def test_sources_that_change_between_the_two_readings_are_noticed(tmp_path, texts, lines, tokenizer):
    source = lines(tmp_path / "in" / "a.jsonl", texts(300))
    calls = 0

    def change():
        nonlocal calls
        calls += 1
        if calls == 2:  # near the end of the first reading
            source.unlink()
            lines(source, texts(300, seed=1))

    with pytest.raises(DataError, match="the sources changed"):
        prepare(str(source), tmp_path / "out", tokenizer=tokenizer, should_stop=change, **SMALL)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_quick_look_notices_a_cut_file_and_not_a_flipped_bit(tmp_path, corpus, tokenizer):
    folder = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL).folder
    flip(folder / "train-00000.bin")
    Shards.open(folder, verify=False)
    (folder / "watch-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"watch-00000\.bin has 0 bytes"):
        Shards.open(folder, verify=False)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [(None, "holds no shards"), ("{", "is damaged"), ('{"format": 9}', "has format 9"), ('{"format": 1}', "not whole")],
)
def test_a_folder_without_a_whole_manifest_of_this_format_is_refused(tmp_path, manifest, message):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=message):
        Shards.open(tmp_path)


def test_changed_validation_text_is_noticed(tmp_path, corpus, tokenizer):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    flip(shards.folder / "validation.jsonl.zst")
    with pytest.raises(DataError, match=r"validation\.jsonl\.zst has SHA-256"):
        shards.validation_texts("watch")


def test_unknown_splits_are_refused(tmp_path, corpus, tokenizer):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    with pytest.raises(DataError, match="no split 'test'"):
        shards.sequence("test")
    with pytest.raises(DataError, match="no half 'train'"):
        shards.validation_texts("train")
    with pytest.raises(IndexError):
        shards.sequence("watch").document(-1)


def test_a_token_beyond_the_models_vocabulary_is_refused(tmp_path, corpus, tokenizer):
    shards = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    largest = shards.manifest["max_token_id"]
    check_vocabulary(shards, largest + 1)
    with pytest.raises(DataError, match=rf"holds token id {largest}, and the model's embedding has {largest} rows"):
        check_vocabulary(shards, largest)


def test_tokens_of_a_large_vocabulary_take_four_bytes(tmp_path, corpus, tokenizer):
    folder = tmp_path / "big"
    folder.mkdir()
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    added = {**content["added_tokens"][0], "id": 70_000, "content": "<|far|>"}
    content["added_tokens"].append(added)
    content["model"]["vocab"]["<|far|>"] = 70_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_bytes((tokenizer / "tokenizer_config.json").read_bytes())
    small = prepare(corpus, tmp_path / "small", tokenizer=tokenizer, **SMALL)
    large = prepare(corpus, tmp_path / "large", tokenizer=folder, **SMALL)
    assert (small.manifest["dtype"], large.manifest["dtype"]) == ("uint16", "uint32")
    for index in range(5):
        assert np.array_equal(small.sequence("train").document(index), large.sequence("train").document(index))


def test_the_validation_hash_knows_nothing_of_the_training_side(tmp_path, corpus, tokenizer):
    one, other = (
        prepare(corpus, tmp_path / str(seed), tokenizer=tokenizer, seed=seed, token_budget=budget, **SMALL)
        for seed, budget in ((0, 300), (1, 200))
    )
    assert one.sha256 != other.sha256
    assert one.validation_sha256 == other.validation_sha256
    third = prepare(corpus, tmp_path / "third", tokenizer=tokenizer, max_documents=10, **SMALL)
    assert third.validation_sha256 != one.validation_sha256


@pytest.mark.parametrize("shard_tokens", [60, 10_000])
def test_the_first_tokens_are_the_opening_of_the_documents_in_their_order(tmp_path, corpus, tokenizer, shard_tokens):
    whole = prepare(corpus, tmp_path / "out", tokenizer=tokenizer, shard_tokens=shard_tokens, **SMALL).sequence("train")
    tokens = np.concatenate([whole.document(index) for index in range(whole.num_documents)])
    for count in (1, 59, 60, 61, whole.num_tokens - 1, whole.num_tokens):
        part = whole.first(count)
        assert part.num_tokens == part.lengths.sum() == count
        found = np.concatenate([part.document(index) for index in range(part.num_documents)])
        assert np.array_equal(found, tokens[:count])
    for count in (0, whole.num_tokens + 1):
        with pytest.raises(DataError, match="is not to be had"):
            whole.first(count)


def test_the_tokens_of_a_budget_have_one_hash_whatever_files_they_lie_in_and_however_many_follow(
    tiny_shards, text_file, tmp_path
):
    tokenizer = Shards.open(tiny_shards).tokenizer
    settings = {"tokenizer": tokenizer, "min_documents": 60}
    small = prepare([str(text_file)], tmp_path / "small", token_budget=3000, **settings).sequence("train")
    large = prepare([str(text_file)], tmp_path / "large", token_budget=6000, shard_tokens=500, **settings).sequence(
        "train"
    )
    assert len(large.tokens) > 5
    assert large.first(3000).sha256 == small.sha256 != large.sha256
    assert large.first(2999).sha256 != small.sha256


def test_more_is_made_in_place_less_is_served_from_what_is_there(tiny_shards, text_file, tmp_path):
    settings = {"tokenizer": Shards.open(tiny_shards).tokenizer, "min_documents": 60, "may_grow": True}
    small = prepare([str(text_file)], tmp_path / "data", token_budget=3000, **settings)
    large = prepare([str(text_file)], tmp_path / "data", token_budget=6000, **settings)
    assert small.validation_sha256 == large.validation_sha256
    again = prepare([str(text_file)], tmp_path / "data", token_budget=3000, **settings)
    assert again.sequence("train").num_tokens == 6000
    with pytest.raises(DataError, match="token_budget: 6000 -> 3000"):
        prepare([str(text_file)], tmp_path / "data", token_budget=3000, **{**settings, "may_grow": False})


@pytest.mark.parametrize("before", [None, "true"])
@pytest.mark.parametrize("ends", ["whole", "stopped"])
def test_each_call_of_the_tokenizer_has_one_thread_and_the_switch_is_put_back(
    corpus, tokenizer, tmp_path, monkeypatch, before, ends
):
    seen, honest = [], TextTokenizer.encode_batch

    def looking(self, texts):
        seen.append((os.environ.get("TOKENIZERS_PARALLELISM"), len(texts)))
        if ends == "stopped" and len(seen) == 5:
            raise Stopped("stopped")
        return honest(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode_batch", looking)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 1)  # a document a call
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    with pytest.raises(Stopped) if ends == "stopped" else nullcontext():
        prepare(corpus, tmp_path / "out", tokenizer=tokenizer, **SMALL)
    assert set(seen) == {("false", 1)}
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
