import hashlib
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inheritune.data import tokenizer as tokenizer_module
from inheritune.data.tokenizer import (
    check_embedding,
    copy_tokenizer,
    open_tokenizer,
    tokenizer_hashes,
    train_tokenizer,
)
from inheritune.errors import DataError


def save(folder, tokenizer, *, before=None, after=None, **tokens):
    """Save a fast tokenizer that puts special tokens before or after a text; gives the folder."""
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    special = [token for token in (before, after) if token]
    backend.add_special_tokens([*special, *tokens.values()])
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single=[*([before] if before else []), "$A", *([after] if after else [])],
            special_tokens=[(token, backend.token_to_id(token)) for token in special],
        )
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    return folder, backend


def test_every_text_survives_encoding_and_decoding(tokenizer):
    opened = open_tokenizer(tokenizer)

    @given(st.text(max_size=60))
    def check(text):
        (ids,) = opened.encode_batch([text])
        assert opened.decode(ids) == text
        assert all(0 <= each < opened.vocab_size for each in ids)

    check()


def test_end_of_text_is_id_zero_and_auto_tokenizer_loads_the_folder(tokenizer):
    opened = open_tokenizer(tokenizer)
    assert opened.end_of_text_id == 0
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert (loaded.eos_token_id, loaded.bos_token_id, len(loaded)) == (0, 0, opened.vocab_size)
    assert loaded("the layer 漢字").input_ids == opened.encode_batch(["the layer 漢字"])[0].tolist()


@given(st.lists(st.text(max_size=40), max_size=20), st.integers(1, 60))
def test_texts_that_are_encoded_some_at_a_time_have_the_same_tokens(tokenizer, texts, characters):
    opened = open_tokenizer(tokenizer)
    with patch.object(tokenizer_module, "CALL_CHARACTERS", characters):
        each = [ids.tolist() for ids in opened.encode_each(texts)]
    assert each == [ids.tolist() for ids in opened.encode_batch(texts)]


LONG_TEXTS = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "the", "layer", " naïve", "漢字", "'s", "7", "123456", "🙂", "."]),
    max_size=200,
).map("".join)

SPACED_TEXTS = st.lists(
    st.sampled_from(["the", "layer", "naïve", "漢字", "12", "🙂", ".", "\n", "layer\n", "\nthe", ""]),
    min_size=60,
    max_size=90,
).map(" ".join)


@given(text=LONG_TEXTS, characters=st.integers(2, 60))
def test_the_pieces_of_a_text_have_its_tokens(tokenizer, text, characters):
    opened = open_tokenizer(tokenizer)
    with patch.object(tokenizer_module, "PIECE_CHARACTERS", characters):
        pieces = list(opened.pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= characters for piece in pieces[:-1])
    tokens = [each for ids in opened.encode_batch(pieces) for each in ids.tolist()]
    assert tokens == opened.encode_batch([text])[0].tolist()


def test_a_long_text_is_cut_and_a_short_one_is_not(tokenizer):
    opened = open_tokenizer(tokenizer)
    text = "the layer keeps what it learned\n" * 50_000
    lengths = [len(piece) for piece in opened.pieces(text)]
    assert len(lengths) > 6
    assert all(length > 0.99 * tokenizer_module.PIECE_CHARACTERS for length in lengths[:-1])
    assert list(opened.pieces(text[:1000])) == [text[:1000]]
    assert list(opened.pieces("")) == [""]


def test_a_text_that_no_place_divides_stays_whole(tokenizer, tmp_path):
    unbroken = "x" * (2 * tokenizer_module.PIECE_CHARACTERS)
    assert list(open_tokenizer(tokenizer).pieces(unbroken)) == [unbroken]
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.normalizer = normalizers.Prepend("x")  # which stands nowhere in the text
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    text = "the layer keeps what it learned\n" * 20_000
    assert list(open_tokenizer(tmp_path).pieces(text)) == [text]


def like_sentencepiece(kind, folder):
    """A tokenizer that puts a space before each text, as those of Llama, Mistral and T5 do; gives the opened folder."""
    alphabet = [*map(chr, range(33, 127)), *"▁\n\t\rï漢字🙂"]
    words = ["th", "the", "▁the", "▁l", "ay", "er", "layer", "▁layer", "▁na", "▁▁", "12", "▁."]
    if kind == "unigram":
        scores = [("<unk>", 0.0), *((each, -8.0 - len(each) / 7) for each in alphabet), *((w, -9.5) for w in words)]
        backend = Tokenizer(models.Unigram(scores, unk_id=0))
    else:
        merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "l"), ("a", "y"), ("e", "r"), ("▁l", "ay")]
        merges += [("▁lay", "er"), ("▁", "▁"), ("1", "2"), ("▁", ".")]
        tokens = dict.fromkeys(["<unk>", *alphabet, *(left + right for left, right in merges)])
        vocabulary = {token: number for number, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    if kind == "bpe by normalizer":  # Llama 2 as it was published
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=kind == "unigram")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
    return open_tokenizer(folder)


@pytest.mark.parametrize("kind", ["bpe by normalizer", "bpe", "unigram"])
def test_a_tokenizer_that_puts_a_space_before_each_text_has_its_tokens_from_pieces(kind, tmp_path):
    opened = like_sentencepiece(kind, tmp_path)
    cut = []

    @given(text=SPACED_TEXTS, characters=st.integers(10, 60))
    def check(text, characters):
        with patch.object(tokenizer_module, "PIECE_CHARACTERS", characters):
            pieces = list(opened.pieces(text))
        cut.append(len(pieces))
        tokens = [each for ids in opened.encode_batch(pieces) for each in ids.tolist()]
        assert tokens == opened.encode_batch([text])[0].tolist()

    check()
    assert max(cut) > 4


@pytest.mark.parametrize("kind", ["bpe by normalizer", "bpe", "unigram"])
def test_a_long_text_is_cut_for_it_too(kind, tmp_path):
    text = "the layer keeps what it learned\n" * 20_000
    lengths = [len(piece) for piece in like_sentencepiece(kind, tmp_path).pieces(text)]
    assert len(lengths) > 2
    assert all(length > 0.98 * tokenizer_module.PIECE_CHARACTERS for length in lengths[:-1])


def test_the_same_texts_give_the_same_tokenizer_bytes(tmp_path, texts):
    folders = [train_tokenizer(iter(texts(100)), 350, tmp_path / name) for name in "ab"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    opened = open_tokenizer(folders[0])
    assert opened.vocab_size == 350
    assert opened.sha256 == hashlib.sha256((folders[0] / "tokenizer.json").read_bytes()).hexdigest()


def test_a_text_that_names_a_special_token_does_not_become_it(tokenizer):
    opened = open_tokenizer(tokenizer)
    (ids,) = opened.encode_batch(["a<|endoftext|>b"])
    assert opened.end_of_text_id not in ids
    assert opened.decode(ids) == "a<|endoftext|>b"


def test_offsets_point_at_the_characters_of_each_token(tokenizer):
    text = "the layer keeps what it learned"
    ids, offsets = open_tokenizer(tokenizer).encode_with_offsets(text)
    assert "".join(text[begin:end] for begin, end in offsets) == text
    assert len(ids) == len(offsets)


def test_what_the_tokenizer_puts_in_front_goes_before_its_eos(tmp_path, tokenizer):
    folder, backend = save(tmp_path, tokenizer, before="<s>", bos_token="<s>", eos_token="</s>")
    assert open_tokenizer(folder).end_of_text_id == backend.token_to_id("<s>")


def test_a_token_that_is_put_behind_a_text_is_not_taken_for_one_in_front(tmp_path, tokenizer):
    folder, backend = save(tmp_path, tokenizer, after="</e>", bos_token="<s>", eos_token="</s>")
    assert open_tokenizer(folder).end_of_text_id == backend.token_to_id("</s>")


def test_the_bos_is_taken_where_there_is_no_eos(tmp_path, tokenizer):
    folder, backend = save(tmp_path, tokenizer, bos_token="<s>")
    assert open_tokenizer(folder).end_of_text_id == backend.token_to_id("<s>")


def test_a_tokenizer_without_any_such_token_is_refused(tmp_path, tokenizer):
    folder, _ = save(tmp_path, tokenizer)
    with pytest.raises(DataError, match="Set eos_token"):
        open_tokenizer(folder)


def test_special_tokens_are_not_added_to_a_text(tmp_path, tokenizer):
    folder, _ = save(tmp_path, tokenizer, before="<s>", after="</e>", bos_token="<s>", eos_token="</s>")
    for text in ("the layer", ""):
        ids = [open_tokenizer(each).encode_batch([text])[0].tolist() for each in (folder, tokenizer)]
        assert ids[0] == ids[1]


def test_a_copied_tokenizer_is_the_same_byte_for_byte(tmp_path, tokenizer):
    copy_tokenizer(tokenizer, tmp_path / "copy")
    assert open_tokenizer(tmp_path / "copy").sha256 == open_tokenizer(tokenizer).sha256


def test_every_ordinary_entry_needs_a_row_of_the_embedding_and_more_rows_are_fine(tokenizer):
    opened = open_tokenizer(tokenizer)
    assert opened.largest_usable_id == opened.vocab_size - 1
    for num_rows in (opened.vocab_size, opened.vocab_size + 100):
        check_embedding(opened, num_rows)
    largest = opened.vocab_size - 1
    with pytest.raises(DataError, match=rf"{tokenizer} has token id {largest} \(.*\), and .* has {largest} rows"):
        check_embedding(opened, largest)


def test_special_tokens_that_no_text_is_given_need_no_row(tmp_path, tokenizer):
    folder, _ = save(tmp_path, tokenizer, eos_token="<|endoftext|>", pad_token="[PAD]")
    opened = open_tokenizer(folder)
    assert opened.vocab_size == open_tokenizer(tokenizer).vocab_size + 1
    check_embedding(opened, opened.vocab_size - 1)


def test_an_end_of_text_token_needs_a_row(tmp_path, tokenizer):
    folder, _ = save(tmp_path, tokenizer, eos_token="</s>")
    opened = open_tokenizer(folder)
    assert opened.end_of_text_id == opened.vocab_size - 1
    with pytest.raises(DataError, match=r"'</s>'"):
        check_embedding(opened, opened.vocab_size - 1)


def test_the_hashes_are_those_of_the_tokenizers_files_only(tmp_path, tokenizer):
    copy_tokenizer(tokenizer, tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "base.tiktoken").write_text("")
    expected = {"tokenizer.json", "tokenizer_config.json", "base.tiktoken"}
    assert set(tokenizer_hashes(tmp_path)) == expected
    assert tokenizer_hashes(tmp_path / "absent") == {}


def test_a_folder_without_a_tokenizer_or_with_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        open_tokenizer(tmp_path / "missing")
    with pytest.raises(DataError, match="has no tokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be used as a fast tokenizer"):
        open_tokenizer(tmp_path)


def test_no_text_and_too_small_a_vocabulary_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(DataError, match="at least 257 entries"):
        train_tokenizer(["x"], 256, tmp_path / "t")
    with pytest.raises(DataError, match="no text to make a tokenizer from"):
        train_tokenizer([], 300, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_an_error_in_the_texts_comes_out_as_it_is(tmp_path):
    def broken():
        yield "one"
        raise DataError("line 2")

    with pytest.raises(DataError, match="line 2"):
        train_tokenizer(broken(), 300, tmp_path / "t")
