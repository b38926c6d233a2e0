"""Finished shards: the manifest, and documents of tokens mapped from disk.

A split is one or more pairs of files: ``SPLIT-00000.bin`` (little-endian uint16 or uint32 tokens) and
``SPLIT-00000.idx`` (little-endian uint64, (documents + 1, 2): token start, byte start).
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune import runs
from inheritune.data.files import read_texts
from inheritune.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
VALIDATION_TEXT = "validation.jsonl.zst"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "watch", "decide")
INDEX_DTYPE = np.dtype("<u8")


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocabulary_size <= 65_535 else "<u4")


@dataclass(frozen=True)
class TokenDocuments:
    """The documents of one split, end-of-text first, in stored order."""

    tokens: tuple[npt.NDArray[np.integer], ...]
    """Per shard: all tokens (mapped from disk)."""
    indices: tuple[npt.NDArray[np.uint64], ...]
    """Per shard: (documents + 1, 2) token start, byte start."""

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, end-of-text included; (documents,)."""
        return np.concatenate([np.diff(index[:, 0].astype(np.int64)) for index in self.indices])

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document's text; (documents,)."""
        return np.concatenate([np.diff(index[:, 1].astype(np.int64)) for index in self.indices])

    @cached_property
    def _shard_ends(self) -> npt.NDArray[np.int64]:
        """Documents up to the end of each shard."""
        return np.cumsum([len(index) - 1 for index in self.indices])

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return int(self._shard_ends[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, each document's end-of-text included."""
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the split's texts."""
        return sum(int(index[-1, 1]) for index in self.indices)

    def first(self, num_tokens: int) -> "TokenDocuments":
        """The first documents, ``num_tokens`` in all, the last of them cut; its bytes are those of the whole document.

        Raises:
            DataError: there are fewer tokens.
        """
        if not 1 <= num_tokens <= self.num_tokens:
            raise DataError(
                f"a token budget of {num_tokens} is not to be had: the shards hold {self.num_tokens} training tokens. "
                f"Give 1 to {self.num_tokens}, and raise passes to go over them more often."
            )
        tokens, indices, left = [], [], num_tokens
        for shard, index in zip(self.tokens, self.indices, strict=True):
            taken = min(left, len(shard))
            documents = int(np.searchsorted(index[:, 0], taken))
            cut = index[: documents + 1].copy()
            cut[-1, 0] = taken
            tokens.append(shard[:taken])
            indices.append(cut)
            left -= taken
            if not left:
                break
        return TokenDocuments(tuple(tokens), tuple(indices))

    def between(self, begin: int, end: int) -> "TokenDocuments":
        """The documents that begin at token ``begin`` or after it, up to token ``end``, the last of them cut.

        Raises:
            DataError: there are fewer than ``end`` tokens.
        """
        held = self.first(end)
        tokens, indices, passed = [], [], 0
        for shard, index in zip(held.tokens, held.indices, strict=True):
            from_document = int(np.searchsorted(index[:-1, 0] + np.uint64(passed), begin))
            passed += len(shard)
            if from_document == len(index) - 1:
                continue
            left = index[from_document:].copy()
            tokens.append(shard[int(left[0, 0]) :])
            left -= left[0]
            indices.append(left)
        return TokenDocuments(tuple(tokens), tuple(indices))

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """Token ids of one document, a view of the file: [end-of-text, t1, ..., tn]."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        shard = int(np.searchsorted(self._shard_ends, index, side="right"))
        local = index - (int(self._shard_ends[shard - 1]) if shard else 0)
        begin, end = self.indices[shard][local : local + 2, 0]
        return self.tokens[shard][int(begin) : int(end)]


@dataclass(frozen=True)
class Shards:
    """A folder made by ``prepare``."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Shards":
        """Open finished shards.

        Args:
            folder: of the shards.
            verify: read every file and compare its SHA-256; False compares sizes only.

        Raises:
            DataError: no shards there, another format, or a file that is missing, cut or changed; names the file.
        """
        folder = Path(folder)
        shards = cls(folder, _read_manifest(folder))
        for split in SPLITS:
            for shard in shards.manifest["splits"][split]["shards"]:
                itemsize = np.dtype(shards.manifest["dtype"]).itemsize
                _check(folder / shard["file"], shard["tokens"] * itemsize, shard["sha256"] if verify else None)
                index_bytes = (shard["documents"] + 1) * 2 * INDEX_DTYPE.itemsize
                _check(folder / shard["index"], index_bytes, shard["index_sha256"] if verify else None)
        return shards

    def sequence(self, split: str) -> TokenDocuments:
        """The documents of "train", "watch" or "decide".

        Raises:
            DataError: another split is asked for.
        """
        if split not in SPLITS:
            raise DataError(f"shards have no split {split!r}. Choose one of {', '.join(SPLITS)}.")
        shards = self.manifest["splits"][split]["shards"]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        return TokenDocuments(
            tokens=tuple(
                np.memmap(self.folder / each["file"], dtype=dtype, mode="r").view(np.ndarray) for each in shards
            ),
            indices=tuple(
                np.fromfile(self.folder / each["index"], dtype=INDEX_DTYPE).reshape(-1, 2).astype(np.uint64)
                for each in shards
            ),
        )

    def validation_texts(self, half: str) -> list[str]:
        """The texts of "watch" or "decide", in the order of their documents.

        Raises:
            DataError: another half is asked for, or the file is missing or changed.
        """
        if half not in ("watch", "decide"):
            raise DataError(f"the validation set has no half {half!r}. Choose watch or decide.")
        path = self.folder / VALIDATION_TEXT
        _check(path, None, self.manifest["validation_text"]["sha256"])
        splits = read_texts(path, "split")
        return [text for split, text in zip(splits, read_texts(path, "text"), strict=True) if split == half]

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that made the tokens."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def sha256(self) -> str:
        """One hash for all tokens: SHA-256 over the hashes of all shards and their indices."""
        return self._sha256_of(SPLITS)

    @property
    def validation_sha256(self) -> str:
        """One hash for the validation set, whatever the training side is: of the shards of both halves."""
        return self._sha256_of(("watch", "decide"))

    def _sha256_of(self, splits: tuple[str, ...]) -> str:
        hashes = [
            shard[name]
            for split in splits
            for shard in self.manifest["splits"][split]["shards"]
            for name in ("sha256", "index_sha256")
        ]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "sha256": self.sha256, "manifest": self.manifest}


def check_vocabulary(shards: Shards, vocabulary_size: int) -> None:
    """Refuse shards with a token id that the model's embedding does not have.

    Raises:
        DataError: the largest token id is ``vocabulary_size`` or more.
    """
    largest = shards.manifest["max_token_id"]
    if largest >= vocabulary_size:
        raise DataError(
            f"{shards.folder} holds token id {largest}, and the model's embedding has {vocabulary_size} rows (ids 0 to "
            f"{vocabulary_size - 1}). The data were prepared with another tokenizer: prepare them with the model's own."
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, of this format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no shards (no {MANIFEST}). Make them with `inheritune prepare`.")
    try:
        manifest = runs.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}. Prepare the data again into a new folder.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path} has format {found!r}, and this version reads format {FORMAT}. "
            "Prepare the data again into a new folder."
        )
    lacking = sorted({"dtype", "splits", "settings", "max_token_id", "validation_text"} - set(manifest))
    if lacking or sorted(manifest["splits"]) != sorted(SPLITS):
        raise DataError(
            f"{path} is not whole (it lacks {lacking or 'splits'}). Prepare the data again into a new folder."
        )
    return dict(manifest)


def _check(path: Path, num_bytes: int | None, sha256: str | None) -> None:
    """Compare a file with what the manifest says of it; None is not compared."""
    advice = "Restore the file, or prepare the data again into a new folder."
    if not path.is_file():
        raise DataError(f"{path} is missing, and the manifest names it. {advice}")
    size = path.stat().st_size
    if num_bytes is not None and size != num_bytes:
        raise DataError(f"{path} has {size} bytes, and the manifest says {num_bytes}: it was cut or changed. {advice}")
    if sha256 is not None:
        found = runs.file_sha256(path)
        if found != sha256:
            raise DataError(f"{path} has SHA-256 {found}, and the manifest says {sha256}: it was changed. {advice}")
