# LEAD: see NOTE_FROM_LEAD.txt in this folder.
"""Fast tokenizers: the reference's own, or one trained here."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.errors import DataError

END_OF_TEXT = "<|endoftext|>"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer as this project uses it: text to ids, no special token added, and the token that opens a document."""

    backend: Any
    """tokenizers.Tokenizer."""
    vocab_size: int
    """Highest id plus one."""
    end_of_text_id: int
    """Stands in front of every document."""
    sha256: str
    """Of ``tokenizer.json``, or of the tokenizer as it would be written there."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the characters (begin, end) that it stands for."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens spelled out."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text


def open_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer in a model's folder.

    The token that opens a document is what the tokenizer itself puts in front of a text (a BOS), since that is what
    its model has seen there; where it puts nothing, its end-of-text token; where it has none, its BOS.

    Raises:
        DataError: no fast tokenizer there, or none of those tokens.
    """
    from transformers import AutoTokenizer  # heavy

    folder = Path(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DataError(
            f"no fast tokenizer in {folder}: {error}. Put the reference's tokenizer.json and tokenizer_config.json there."
        ) from error
    backend.no_padding()
    backend.no_truncation()
    in_front = tokenizer("").input_ids
    opening = in_front[0] if in_front and in_front[0] == tokenizer.bos_token_id else None
    candidates = [each for each in (opening, tokenizer.eos_token_id, tokenizer.bos_token_id) if each is not None]
    if not candidates:
        raise DataError(
            f"the tokenizer in {folder} has no BOS and no end-of-text token to open documents with. "
            "Name an eos_token in its tokenizer_config.json."
        )
    file = folder / "tokenizer.json"
    sha256 = runs.file_sha256(file) if file.exists() else hashlib.sha256(backend.to_str().encode()).hexdigest()
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return TextTokenizer(backend, vocab_size, candidates[0], sha256)


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> Path:
    """A byte-level BPE with ``<|endoftext|>`` as id 0, written as a folder that ``AutoTokenizer`` loads.

    Args:
        texts: training text only.
        vocab_size: entries, at least 257.
        out: the folder to make.

    Raises:
        DataError: a vocabulary smaller than the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise DataError(f"a byte-level vocabulary needs at least {len(alphabet) + 1} entries, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with runs.new_folder(out) as new:
        tokenizer.save(str(new / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        runs.write_json(new / "tokenizer_config.json", config)
    return out


def copy_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer's files, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
