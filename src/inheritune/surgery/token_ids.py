"""Whether a folder's tokenizer and special tokens fit its model, from the files alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from inheritune.runs import read_json
from inheritune.surgery.findings import Finding
from inheritune.surgery.transplant import TOKENIZER_FILES

TOKENIZER, TABLE, ADDED = "tokenizer.json", "vocab.json", "added_tokens.json"

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer file: of ordinary tokens, and of those added on top."""

    file: str
    ordinary: frozenset[int]
    added: frozenset[int]

    @property
    def all(self) -> frozenset[int]:
        """Every id that a text or a template can give."""
        return self.ordinary | self.added


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether one of the files is a tokenizer of any kind."""
    return any(fnmatch(name, pattern) for name in names for pattern in TOKENIZER_FILES)


def read_vocabulary(folder: Path, names: Collection[str]) -> Vocabulary | None:
    """The ids of ``tokenizer.json``, or of ``vocab.json`` with ``added_tokens.json``; None where neither is there.

    Args:
        folder: of the model.
        names: of its files that may be read.

    Raises:
        ValueError: the file is there and is not one.
    """
    try:
        if TOKENIZER in names:
            value = read_json(folder / TOKENIZER)
            table = value["model"].get("vocab", {})
            ordinary = table.values() if isinstance(table, dict) else range(len(table))
            added = [token["id"] for token in value.get("added_tokens") or []]
            return Vocabulary(TOKENIZER, frozenset(map(int, ordinary)), frozenset(map(int, added)))
        if TABLE in names:
            ordinary = read_json(folder / TABLE).values()
            added = list(read_json(folder / ADDED).values()) if ADDED in names else []
            return Vocabulary(TABLE, frozenset(map(int, ordinary)), frozenset(map(int, added)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return None


def judge_vocabulary(vocabulary: Vocabulary, num_rows: int) -> list[Finding]:
    """Tokens without a row in the embedding.

    Args:
        vocabulary: of the tokenizer.
        num_rows: of the embedding.
    """
    beyond = sorted(index for index in vocabulary.ordinary if index >= num_rows)
    if beyond:
        what = f"{len(beyond)} tokens have no row in the embedding, which has {num_rows} (first: id {beyond[0]})"
        return [
            Finding("fault", "tokenizer", vocabulary.file, what, "Copy the tokenizer files of this very model there.")
        ]
    beyond = sorted(index for index in vocabulary.added if index >= num_rows)
    if beyond:
        what = f"{len(beyond)} added tokens have no row in the embedding, which has {num_rows} (first: id {beyond[0]})"
        return [Finding("warning", "tokenizer", vocabulary.file, what, "Do not feed these tokens to the model.")]
    return []


def judge_special_ids(
    file: str, config: Mapping[str, Any], num_rows: int | None, vocabulary: Vocabulary | None
) -> list[Finding]:
    """Special tokens that the model or the tokenizer does not have.

    Args:
        file: that the config is from.
        config: with the ids.
        num_rows: of the embedding.
        vocabulary: of the tokenizer.
    """
    findings = []
    for name in SPECIAL_IDS:
        for index in _ids(config.get(name)):
            what = None
            if num_rows is not None and not 0 <= index < num_rows:
                what = f"is {index}, and the embedding has the rows 0 to {num_rows - 1}"
            elif vocabulary is not None and index not in vocabulary.all:
                what = f"is {index}, and {vocabulary.file} has no token of that id"
            if what:
                advice = "Set it to the tokenizer's own id (or null) before generating or training."
                findings.append(Finding("warning", "token id", f"{file}: {name}", what, advice))
    return findings


def _ids(value: Any) -> Sequence[int]:
    """A field's ids: one, several, or none."""
    return [index for index in (value if isinstance(value, list | tuple) else [value]) if type(index) is int]
