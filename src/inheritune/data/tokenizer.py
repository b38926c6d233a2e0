"""The reference's own fast tokenizer, and a byte-level BPE made from text where there is none."""

import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune import runs
from inheritune.errors import DataError

END_OF_TEXT = "<|endoftext|>"
CALL_CHARACTERS = 2**20
"""Of one call of the tokenizer on all threads."""

PIECE_CHARACTERS = 2**18
"""Of one piece of a long text, at most, where it can be cut."""

CUT_CONTEXT = 256
"""Characters on either side by which a cut is tried."""

MOST_CUTS_TRIED = 16
"""Of one piece."""

_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= \S)")
"""After a line break, or before a single space: where most tokenizers begin a word."""

MIN_VOCABULARY = 257
"""256 bytes and end-of-text."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)

HASHED_FILES = (*TOKENIZER_FILES, "vocab.*", "*.model", "*.tiktoken", "chat_template*", "config.json")
"""Everything that can change what a text's tokens are; ``config.json`` may be all that names the tokenizer's class."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer as pre-training uses it: no special tokens are added, and none is read out of a text."""

    folder: Path
    end_of_text_id: int
    """The token in front of every document."""
    vocab_size: int
    """The largest token id plus one."""
    largest_usable_id: int
    """The largest id that a text can be given: of the ordinary entries and the end-of-text token."""
    sha256: str
    """Of ``tokenizer.json``, or of the tokenizer as it would be written there."""
    backend: Any = field(repr=False)
    """A ``tokenizers.Tokenizer`` without truncation and padding."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, on all threads, at once."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)  # outside of Python's lock
        return [np.frombuffer(array("I", each.ids), dtype=np.uint32) for each in encodings]

    def encode_each(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """Token ids of any number of texts, some at a time: what a call gives back takes a hundred times their size."""
        batch: list[str] = []
        held = 0
        for text in texts:
            batch.append(text)
            held += len(text)
            if held >= CALL_CHARACTERS:
                yield from self.encode_batch(batch)
                batch, held = [], 0
        yield from self.encode_batch(batch)

    def pieces(self, text: str) -> Iterator[str]:
        """A text in pieces whose tokens, one piece after the other, are the text's; a short text is one piece.

        A call takes some hundred times the memory of its text, and a book or a log can be one text. A piece ends
        where the tokens of the characters around are those of the two sides: exact, as long as what decides a token
        is less than ``CUT_CONTEXT`` away. Where no place of a piece agrees, the rest stays whole.

        A tokenizer that puts a space before every text (SentencePiece) gets the one at a cut in this way: the piece
        behind it begins without.
        """
        begin = 0
        while len(text) - begin > PIECE_CHARACTERS:
            last = begin + PIECE_CHARACTERS
            places = _last_places(text, last - PIECE_CHARACTERS // 64, last) or _last_places(text, begin + 1, last)
            cuts = ((end, end + skipped) for end in places for skipped in (0, 1) if not skipped or text[end] == " ")
            cut = next((cut for cut in cuts if self._cuts_at(text, *cut)), None)
            if cut is None:
                break
            yield text[begin : cut[0]]
            begin = cut[1]
        yield text[begin:]

    def _cuts_at(self, text: str, end: int, begin: int) -> bool:
        """Whether the tokens around a place are those up to ``end`` and those from ``begin`` on, which is no other
        place or lies one space behind."""
        context = slice(max(0, end - CUT_CONTEXT), begin + CUT_CONTEXT)
        both, *sides = self.encode_batch([text[context], text[context.start : end], text[begin : context.stop]])
        return np.array_equal(both, np.concatenate(sides))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the characters [begin, end) that each token spells."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens written out."""
        return str(self.backend.decode([int(each) for each in ids], skip_special_tokens=False))


def _last_places(text: str, begin: int, end: int) -> list[int]:
    """Where a text might be cut between two of its characters, the last place first."""
    return [each.start() for each in _CUT.finditer(text, begin, end)][: -MOST_CUTS_TRIED - 1 : -1]


def open_tokenizer(folder: str | Path) -> TextTokenizer:
    """The fast tokenizer in a folder; nothing is fetched and no code of the folder is run.

    Raises:
        DataError: no such folder, no fast tokenizer in it, or one without a token to put in front of a document.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} to take a tokenizer from. Name the reference's folder.")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(
            f"{folder} has no tokenizer (no tokenizer.json). Copy the tokenizer's files into it, or name a folder "
            "that has them."
        )
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_fast=True)
        end_of_text_id = _end_of_text_id(loaded)
        backend = _plain(loaded.backend_tokenizer)
    except Exception as error:  # transformers raises what its tokenizer classes like; the cause is kept
        raise DataError(
            f"the tokenizer in {folder} cannot be used as a fast tokenizer: {type(error).__name__}: {error}. "
            "Save it again with tokenizer.json."
        ) from error
    file = folder / "tokenizer.json"
    content = file.read_bytes() if file.is_file() else backend.to_str().encode()
    if end_of_text_id is None:
        raise DataError(
            f"the tokenizer in {folder} has no beginning-of-text and no end-of-text token, so nothing can stand "
            "between documents. Set eos_token in its tokenizer_config.json."
        )
    ids = set(backend.get_vocab(with_added_tokens=True).values())
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    return TextTokenizer(
        folder=folder,
        end_of_text_id=end_of_text_id,
        vocab_size=max(ids) + 1,
        largest_usable_id=max({end_of_text_id, *(ids - special)}),
        sha256=hashlib.sha256(content).hexdigest(),
        backend=backend,
    )


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """File name -> hex SHA-256 of each of the tokenizer's files in a folder; nothing where there is no such folder."""
    paths = {path.name: path for pattern in HASHED_FILES for path in folder.glob(pattern) if path.is_file()}
    return {name: runs.file_sha256(paths[name]) for name in sorted(paths)}


def check_embedding(tokenizer: TextTokenizer, num_rows: int) -> None:
    """Refuse a tokenizer whose ordinary entries do not all have a row in the model's embedding; more rows are fine.

    Special tokens beyond the embedding are let be (published tokenizers have them): no text is given one.

    Raises:
        DataError: a text could be given a token id of ``num_rows`` or more.
    """
    largest = tokenizer.largest_usable_id
    if largest >= num_rows:
        raise DataError(
            f"the tokenizer in {tokenizer.folder} has token id {largest} "
            f"({tokenizer.backend.id_to_token(largest)!r}), and the model's embedding has {num_rows} rows (ids 0 to "
            f"{num_rows - 1}). They do not belong together: put the model's own tokenizer beside it."
        )


def _plain(backend: Any) -> Any:
    """Set it to neither cut nor pad, and to read the name of a special token in a text as ordinary text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _end_of_text_id(loaded: Any) -> int | None:
    """What the tokenizer itself puts in front of a text (its model knows that); else its eos; else its bos."""
    bare = list(loaded("a", add_special_tokens=False)["input_ids"])
    whole = list(loaded("a", add_special_tokens=True)["input_ids"])
    if len(whole) > len(bare) and whole[: len(bare)] != bare:
        return int(whole[0])
    return next((int(each) for each in (loaded.eos_token_id, loaded.bos_token_id) if each is not None), None)


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> Path:
    """Make a byte-level BPE from texts; ``<|endoftext|>`` is id 0. The same texts give the same bytes.

    Args:
        texts: read once, not held.
        vocab_size: entries wanted; little text gives fewer.
        out: folder for ``tokenizer.json`` and ``tokenizer_config.json``; made where it is missing.

    Returns:
        ``out``.

    Raises:
        DataError: no text, or a vocabulary that does not hold the 256 bytes and end-of-text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCABULARY:
        raise DataError(
            f"a byte-level vocabulary needs at least {MIN_VOCABULARY} entries (256 bytes and end-of-text), "
            f"got {vocab_size}. Raise vocab_size."
        )
    num_texts = 0

    def counted() -> Iterator[str]:
        nonlocal num_texts
        for text in texts:
            num_texts += 1
            yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(counted(), trainer=trainer)
    if num_texts == 0:
        raise DataError("there is no text to make a tokenizer from. Check data.sources.")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    out = Path(out)
    runs.write_json(out / "tokenizer_config.json", config)
    runs.write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    return out


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy a tokenizer's files byte for byte; ``config.json`` too where only that says what the tokenizer is."""
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    config = source / "tokenizer_config.json"
    named = config.is_file() and "tokenizer_class" in json.loads(config.read_text(encoding="utf-8"))
    if not named and (source / "config.json").is_file():
        names.append("config.json")
    for name in names:
        shutil.copyfile(source / name, out / name)
