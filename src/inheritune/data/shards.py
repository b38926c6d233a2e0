"""Text to shards: a split by a hash of each text, a seeded choice of training documents, tokens on disk.

The bytes of the shards depend on the texts and the settings alone, not on the machine or the order of the sources.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from inheritune import runs
from inheritune.data.encoding import Encoded, encode_documents, tokens_per_byte, write_split
from inheritune.data.integrity import BLOCK_BYTES
from inheritune.data.sources import Source, listed
from inheritune.data.split import FEW_DOCUMENTS, TOO_FEW_DOCUMENTS
from inheritune.data.store import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    VALIDATION_TEXT,
    Shards,
    TokenDocuments,
    check_vocabulary,
    token_dtype,
)
from inheritune.data.survey import Survey, look_over, training_texts
from inheritune.data.tokenizer import TextTokenizer, copy_tokenizer, open_tokenizer, tokenizer_hashes
from inheritune.errors import DataError

__all__ = ["MANIFEST", "Shards", "TokenDocuments", "check_vocabulary", "prepare", "training_texts"]

Indices = npt.NDArray[np.int64]


def prepare(
    sources: Source | Sequence[Source],
    out: str | Path,
    *,
    tokenizer: str | Path,
    token_budget: int | None = None,
    validation: float = 0.05,
    seed: int = 0,
    text_field: str = "text",
    min_documents: int = 200,
    max_documents: int = 4000,
    document_bytes: int = 32_768,
    shard_tokens: int = 100_000_000,
    should_stop: Callable[[], None] | None = None,
    may_grow: bool = False,
) -> Shards:
    """Make shards, or open them where the same settings have made them already.

    Exact duplicates and empty texts are dropped (and counted in the manifest). Nothing is left behind when it fails.

    Args:
        sources: files, folders, globs, hub datasets; see ``inheritune.data.sources``.
        out: folder to make.
        tokenizer: folder of the reference's tokenizer.
        token_budget: training tokens, end-of-text of each document included, met exactly; None takes all.
        validation: part of the documents on the validation side.
        seed: of the random choice and order of training documents; the validation set does not depend on it.
        text_field: field with the text in JSON lines and tables.
        min_documents: the fewest validation documents; ``validation`` is raised where need be.
        max_documents: the most validation documents that are stored: those with the smallest hashes.
        document_bytes: UTF-8 bytes that are kept of a validation document.
        shard_tokens: tokens of one file; a longer document has a file of its own.
        should_stop: called now and then; may raise, and then nothing is left behind.
        may_grow: where all that differs from the shards that are there is a larger ``token_budget``, make them anew:
            the same validation set, and the same training tokens followed by more. A smaller one leaves them as they
            are: their first tokens are those of the smaller budget.

    Raises:
        DataError: text that is missing, too little or damaged, an ``out`` that holds something else, or a budget
            above what the data hold.
    """
    folder = Path(out)
    given = open_tokenizer(tokenizer)
    settings = {
        "sources": [_plain(each) for each in listed(sources)],
        "tokenizer_sha256": given.sha256,
        "token_budget": token_budget,
        "validation": validation,
        "seed": seed,
        "text_field": text_field,
        "min_documents": min_documents,
        "max_documents": max_documents,
        "document_bytes": document_bytes,
        "shard_tokens": shard_tokens,
    }
    _check_settings(settings)
    runs.recover(folder)
    former = None
    if (folder / MANIFEST).exists():
        there = Shards.open(folder)
        if not (may_grow and _differs_by_budget(there.manifest["settings"], settings)):
            return _same_settings(there, settings, given.folder)
        held, asked = there.manifest["settings"]["token_budget"], settings["token_budget"]
        if held is None or (asked is not None and asked <= held):
            return there
        former = there
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and holds no shards. Choose another folder, or empty this one.")
    survey = look_over(
        sources, text_field=text_field, validation=validation, min_documents=min_documents, check_stop=should_stop
    )
    held_out = survey.validation[:max_documents]
    is_decide = (survey.keys[held_out] & np.uint64(1)) == 1
    with runs.new_folder(folder) as new:
        dtype = token_dtype(given.vocab_size)
        with Encoded(new / "unordered.tmp", dtype, len(survey.keys)) as encoded:
            texts: dict[int, str] = {}

            def encode(training: Indices) -> None:
                """Training documents; the first time those held out, too: one reading for both."""
                texts.update(
                    encode_documents(
                        survey,
                        sources,
                        training,
                        given,
                        encoded,
                        text_field=text_field,
                        cut=held_out[:0] if texts else held_out,
                        cut_bytes=document_bytes,
                        check_stop=should_stop,
                    )
                )

            order = survey.training(seed)
            if token_budget is not None:
                order = _up_to_budget(order, token_budget, survey, given, encoded, encode)
            else:
                encode(order)
            splits: dict[str, Any] = {}
            largest = 0
            needed = int(encoded.lengths.sum()) * dtype.itemsize + 16 * int((encoded.lengths > 0).sum() + len(SPLITS))
            runs.require_space(new, needed + sum(len(text.encode()) for text in texts.values()), "the shards")
            chosen = {"train": order, "watch": held_out[~is_decide], "decide": held_out[is_decide]}
            for split in SPLITS:
                stored = chosen[split] = chosen[split][encoded.lengths[chosen[split]] > 1]  # no token: no document
                if len(stored) == 0:
                    raise _nothing_on(split, survey)
                limit = token_budget if split == "train" else None
                splits[split], top = write_split(new, split, stored, encoded, survey, given, shard_tokens, limit)
                largest = max(largest, top)
        (new / "unordered.tmp").unlink()
        text_sha256 = _write_validation_text(new, {half: chosen[half] for half in ("watch", "decide")}, survey, texts)
        copy_tokenizer(given.folder, new / TOKENIZER_FOLDER)
        runs.write_json(
            new / MANIFEST,
            {
                "format": FORMAT,
                "tokenizer": {
                    "sha256": given.sha256,
                    "folder": TOKENIZER_FOLDER,
                    "files": tokenizer_hashes(new / TOKENIZER_FOLDER),
                },
                "vocabulary_size": given.vocab_size,
                "end_of_text_id": given.end_of_text_id,
                "dtype": dtype.name,
                "seed": seed,
                "sources": settings["sources"],
                "settings": settings,
                "threshold": survey.threshold,
                "max_token_id": largest,
                "documents_read": len(survey.keys),
                "duplicates_dropped": survey.num_duplicates,
                "empty_dropped": survey.num_empty,
                "validation_left_out": len(survey.validation) - len(held_out),
                "block_bytes": BLOCK_BYTES,
                "splits": splits,
                "validation_text": {"file": VALIDATION_TEXT, "sha256": text_sha256},
                "warnings": _warnings(splits["decide"]["documents"]),
            },
        )
        if former:
            _check_grown(former, Shards.open(new, verify=False))
    return Shards.open(folder, verify=False)


def _plain(source: Source) -> str | dict[str, Any]:
    """A source as JSON writes it."""
    if isinstance(source, Mapping):
        return {name: str(value) if isinstance(value, Path) else value for name, value in source.items()}
    return str(source)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that mean nothing."""
    for name in ("token_budget", "max_documents", "document_bytes", "shard_tokens"):
        value = settings[name]
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}: give a number of at least 1.")


def _differs_by_budget(before: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the token budget, and nothing else, differs."""
    others = {name: value for name, value in settings.items() if name != "token_budget"}
    if any(before.get(name) != json.loads(json.dumps(value)) for name, value in others.items()):
        return False
    return bool(before.get("token_budget") != settings["token_budget"])


def _check_grown(former: Shards, grown: Shards) -> None:
    """Hold shards of a larger budget to the ones that they replace.

    Raises:
        DataError: the validation set or the tokens trained on are others; the sources have changed.
    """
    old = former.sequence("train")
    new = grown.sequence("train").first(old.num_tokens)
    same = np.array_equal(old.lengths, new.lengths) and all(
        np.array_equal(old.document(index), new.document(index)) for index in range(old.num_documents)
    )
    if not same or former.validation_sha256 != grown.validation_sha256:
        raise DataError(
            f"the text that {former.folder} was made from has changed since, so a larger token budget would not begin "
            "with what was trained on. Restore the sources, choose another run_dir, or start over with --fresh."
        )


def _same_settings(shards: Shards, settings: dict[str, Any], tokenizer: Path) -> Shards:
    """The shards that are there, if the same tokenizer and settings made them."""
    folder, before = shards.folder, shards.manifest["settings"]
    if before.get("tokenizer_sha256") != settings["tokenizer_sha256"]:
        raise DataError(
            f"{folder} was made with another tokenizer than the one that {tokenizer} holds now (SHA-256 of "
            f"tokenizer.json {before.get('tokenizer_sha256')} -> {settings['tokenizer_sha256']}). Put the former one "
            "back, choose another folder, or delete this one."
        )
    differences = [
        f"{name}: {before.get(name)!r} -> {settings.get(name)!r}"
        for name in sorted(set(before) | set(settings))
        if before.get(name) != json.loads(json.dumps(settings.get(name)))
    ]
    if differences:
        raise DataError(
            f"{folder} holds shards made with other settings ({'; '.join(differences)}). "
            "Choose another folder, delete this one, or give the old settings."
        )
    return shards


def _up_to_budget(
    order: Indices,
    token_budget: int,
    survey: Survey,
    tokenizer: TextTokenizer,
    encoded: Encoded,
    encode: Callable[[Indices], None],
) -> Indices:
    """Encode only as much of the order as the budget needs, and give that part; no guess changes the result."""
    ratio = tokens_per_byte(survey.sample, tokenizer)
    reach, held = 0, 0
    while held < token_budget and reach < len(order):
        guessed = np.cumsum(survey.num_bytes[order[reach:]] * ratio + 1) * 0.95
        further = reach + 1 + int(np.searchsorted(guessed, token_budget - held))
        encode(order[reach:further])
        reach = min(further, len(order))
        ends = np.cumsum(np.where(encoded.lengths[order[:reach]] > 1, encoded.lengths[order[:reach]], 0))
        held = int(ends[-1])
        ratio = held / max(1, int(survey.num_bytes[order[:reach]].sum()))
    if held < token_budget:
        raise DataError(
            f"data.token_budget asks for {token_budget} training tokens, and the training side of the data holds "
            f"{held}. Lower data.token_budget to at most {held} and raise train.passes to go over them more often, or "
            "add sources."
        )
    return order[: int(np.searchsorted(ends, token_budget)) + 1]


def _nothing_on(split: str, survey: Survey) -> DataError:
    """What to say of a split without documents."""
    return DataError(
        f"no document is left for {split!r}: there are {int(survey.kept.sum())} different documents, and "
        f"{len(survey.validation)} of them are validation. Add sources, or raise data.validation.min_documents or "
        "data.validation.fraction."
    )


def _warnings(num_decide: int) -> list[str]:
    """What the user should know of these shards."""
    if num_decide >= FEW_DOCUMENTS:
        return []
    what = (
        f"no verdict will be given ({TOO_FEW_DOCUMENTS} are needed)"
        if num_decide < TOO_FEW_DOCUMENTS
        else f"the verdict's interval will be wide ({FEW_DOCUMENTS} make it reliable)"
    )
    return [
        f"only {num_decide} validation documents in the decide half: {what}. Raise the fewest validation documents "
        "(data.validation.min_documents, or --min-documents), or add documents."
    ]


def _write_validation_text(new: Path, halves: Mapping[str, Indices], survey: Survey, texts: Mapping[int, str]) -> str:
    """The validation texts in the order of their documents, JSON lines under zstd; gives the file's SHA-256."""
    lines = io.StringIO()
    for half, chosen in halves.items():
        for index in chosen.tolist():
            domain = survey.domain_names[survey.domain_ids[index]]
            line = {"split": half, "domain": domain, "text": texts[index]}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    content = zstandard.ZstdCompressor(level=6).compress(lines.getvalue().encode())
    runs.write_bytes(new / VALIDATION_TEXT, content)
    return runs.file_sha256(new / VALIDATION_TEXT)
