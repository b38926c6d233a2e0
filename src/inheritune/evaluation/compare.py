"""Validation loss of any number of models on the same text, and their paired differences."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.data.shards import MANIFEST, Shards
from inheritune.data.sources import read_documents
from inheritune.data.split import FEW_DOCUMENTS, TOO_FEW_DOCUMENTS
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import EvaluationError
from inheritune.evaluation.statistics import Interval, paired_bootstrap, token_mean
from inheritune.evaluation.token_loss import check_ids, score_documents
from inheritune.machine.probe import best_device
from inheritune.surgery.folder import build_config, load_model, read_config, resolve
from inheritune.surgery.positions import check_positions

MAX_SEQUENCE_LENGTH = 1024
"""Window by default, or less where a model has fewer positions."""


@dataclass(frozen=True)
class Score:
    """One model on the text."""

    model: str
    loss_nats: float
    """Mean next-token cross-entropy, nats per token of the model's own tokenizer."""
    perplexity: float
    bits_per_byte: float
    """Compares across tokenizers."""
    documents: int
    tokens: int


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same documents."""

    model: str
    against: str
    unit: str
    """ "nats per token", or "bits per byte" where the two tokenizers cut the text differently."""
    interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """Scores of all models, and of each model against each given baseline."""

    data: str
    sequence_length: int
    num_bytes: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()
    """What keeps the differences from being believed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def table(self) -> str:
        """Lines for the terminal."""
        width = max(len(score.model) for score in self.scores)
        documents = self.scores[0].documents
        lines = [
            f"{documents} documents, {self.num_bytes} bytes of {self.data}, windows of {self.sequence_length}",
            f"{'model':<{width}}  loss nats  perplexity  bits/byte",
        ]
        lines += [
            f"{score.model:<{width}}  {score.loss_nats:9.4f}  {score.perplexity:10.3f}  {score.bits_per_byte:9.4f}"
            for score in self.scores
        ]
        lines += [
            f"{each.model} minus {each.against}: {each.interval.mean:+.4f} "
            f"[{each.interval.low:+.4f}, {each.interval.high:+.4f}] {each.unit} (95 %, paired over documents)"
            for each in self.differences
        ]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def evaluate_loss(
    model: str | Path | Sequence[str | Path],
    *,
    data: str | Path | Sequence[str | Path],
    against: Sequence[str | Path] | str | Path = (),
    half: str = "decide",
    sequence_length: int | None = None,
    text_field: str = "text",
) -> Evaluation:
    """Score models on the same documents.

    Args:
        model: a folder or hub id, or several.
        data: a folder of shards (its validation text is used), or files, folders and globs of raw text.
        against: models that each of ``model`` is compared with, paired over documents.
        half: of the shards' validation set, "decide" or "watch"; raw text has no halves.
        sequence_length: window; default 1024, or the fewest positions that a model has.
        text_field: of JSON lines and tables.

    Raises:
        EvaluationError: no text to score, or a token id that a model's embedding does not have.
        RecipeError: a window beyond a model's table of positions; beyond computed ones it is a warning.
    """
    models = [str(each) for each in _listed(model)]
    others = [str(each) for each in _listed(against)]
    if not models:
        raise EvaluationError("no model is named. Name a folder or hub id, or several.")
    texts = [text for text in texts_to_score(_listed(data), half, text_field) if text.strip()]
    if not texts:
        raise EvaluationError(f"there is no text to score in {data}. Name shards, or files with text.")
    folders = {name: resolve(name) for name in dict.fromkeys(models + others)}
    configs = {name: build_config(read_config(folder)) for name, folder in folders.items()}
    least = min(map(fewest_positions, configs.values()))
    window = min(MAX_SEQUENCE_LENGTH, least) if sequence_length is None else sequence_length
    if window < 1:
        raise EvaluationError(f"windows of {window} tokens mean nothing. Give 1 to {least}.")
    beyond = [f"{name}: {said}" for name, config in configs.items() if (said := check_positions(config, window))]
    num_bytes = [len(text.encode()) for text in texts]
    sums: dict[str, npt.NDArray[np.float64]] = {}
    tokenizers = {}
    for name, folder in folders.items():  # one model in memory at a time
        tokenizer = tokenizers[name] = open_tokenizer(folder)
        documents = [np.append(tokenizer.end_of_text_id, ids) for ids in tokenizer.encode_each(texts)]
        network = load_model(folder).to(best_device())
        check_ids(name, network, max(int(document.max()) for document in documents))
        sums[name] = score_documents(network, documents, sequence_length=window)
        del network
    scores = [_score(name, sums[name], sum(num_bytes)) for name in folders]
    differences = []
    for name in models:
        for other in others:
            same_tokens = bool(np.array_equal(sums[name][:, 1], sums[other][:, 1]))
            same_tokenizer = same_tokens and tokenizers[name].sha256 == tokenizers[other].sha256
            a, b = (
                (sums[name], sums[other])
                if same_tokenizer
                else (_bits(sums[each], num_bytes) for each in (name, other))
            )
            unit = "nats per token" if same_tokenizer else "bits per byte"
            differences.append(Difference(name, other, unit, paired_bootstrap(a, b)))
    return Evaluation(
        data=", ".join(str(each) for each in _listed(data)),
        sequence_length=window,
        num_bytes=sum(num_bytes),
        scores=tuple(scores),
        differences=tuple(differences),
        warnings=(*beyond, *(_warnings(len(texts)) if differences else ())),
    )


def _warnings(num_documents: int) -> tuple[str, ...]:
    """Law 4 of the intervals: few documents make them uncertain, fewer make them worthless."""
    if num_documents >= FEW_DOCUMENTS:
        return ()
    worth = "shows nothing" if num_documents < TOO_FEW_DOCUMENTS else "is uncertain"
    return (
        f"an interval over {num_documents} documents {worth} ({FEW_DOCUMENTS} make it reliable). Give more documents; "
        "a .txt file is one, a line of .jsonl is one.",
    )


def _listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return [value] if isinstance(value, str | Path) else list(value)


def texts_to_score(data: list[str | Path], half: str, text_field: str) -> list[str]:
    """The text of each source: a shards folder's validation half, or raw text."""
    texts: list[str] = []
    for each in data:
        folder = Path(each).expanduser()
        if (folder / MANIFEST).exists():
            texts += Shards.open(folder).validation_texts(half)
        else:
            texts += [document.text for document in read_documents([str(each)], text_field=text_field)]
    return texts


def fewest_positions(config: Any) -> int:
    """Positions of a model, by its config; as many as one likes where it names none."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31


def _score(name: str, sums: npt.NDArray[np.float64], num_bytes: int) -> Score:
    """Totals of one model."""
    loss_nats = token_mean(sums)
    nats = float(sums[:, 0].sum())
    return Score(
        model=name,
        loss_nats=loss_nats,
        perplexity=math.exp(min(loss_nats, 700.0)),
        bits_per_byte=nats / (num_bytes * math.log(2)),
        documents=len(sums),
        tokens=int(sums[:, 1].sum()),
    )


def _bits(sums: npt.NDArray[np.float64], num_bytes: list[int]) -> npt.NDArray[np.float64]:
    """Per-document (bits, bytes) from (nats, tokens)."""
    return np.stack([sums[:, 0] / math.log(2), np.array(num_bytes, dtype=np.float64)], axis=1)
