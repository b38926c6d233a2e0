"""``analyze``: the layers of any number of models on the same text, into a folder that the report reads."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inheritune import runs
from inheritune.analysis.attention import ENERGY, LAZY_BELOW, LayerAttention, measure_attention
from inheritune.analysis.depth import Depths, measure_depths
from inheritune.analysis.suggest import Suggestion, suggest
from inheritune.data.tokenizer import TextTokenizer, open_tokenizer
from inheritune.errors import EvaluationError
from inheritune.evaluation.compare import MAX_SEQUENCE_LENGTH, fewest_positions, texts_to_score
from inheritune.evaluation.statistics import Interval, paired_bootstrap, token_mean
from inheritune.evaluation.token_loss import check_ids
from inheritune.machine.probe import best_device
from inheritune.surgery.folder import load_model, resolve

FILE = "analysis.json"
FOLDER = "analysis"
"""In a run's folder."""

SEQUENCES, LENGTH = 100, 100
"""Sequences and their tokens that attention is looked at on. Source: arXiv:2404.08634v4."""

MAX_DOCUMENTS = 200
"""Documents that losses are measured on, the first ones."""


@dataclass(frozen=True)
class ModelAnalysis:
    """One model's layers."""

    model: str
    depth: int
    documents: int
    tokens: int
    loss_nats: float | None
    """Of the whole model, nats per token; None where depths were left out."""
    prefix_nats: tuple[float, ...] | None
    """Of the first 0, 1, ..., L layers."""
    costs: tuple[Interval, ...] | None
    """Loss without each layer minus the whole model's, nats per token, paired over documents."""
    influence: tuple[float, ...] | None
    """1 - cosine across each layer."""
    angles: tuple[tuple[float | None, ...], ...] | None
    """Row i, column j: the turn of the block of layers i to j - 1, as a share of a half turn."""
    suggestion: Suggestion | None
    attention: tuple[LayerAttention, ...] | None
    """None where attention was left out."""

    @property
    def lazy(self) -> tuple[int, ...] | None:
        """Lazy layers, with the tolerance."""
        return None if self.attention is None else tuple(each.layer for each in self.attention if each.is_lazy)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        attention = self.attention and [
            {
                "layer": each.layer,
                "max_rank": _finite(each.max_rank),
                "mean_rank": _finite(each.mean_rank),
                "mean_mass": _finite(each.mean_mass),
                "lazy": each.is_lazy,
                "strictly_lazy": each.is_strictly_lazy,
                "ranks": list(each.ranks),
                "masses": list(each.masses),
            }
            for each in self.attention
        ]
        suggestion = self.suggestion and {
            "depth": self.suggestion.depth,
            "layers": list(self.suggestion.layers),
            "reason": self.suggestion.reason,
        }
        return {
            "model": self.model,
            "depth": self.depth,
            "documents": self.documents,
            "tokens": self.tokens,
            "loss_nats": self.loss_nats,
            "prefix_nats": self.prefix_nats,
            "costs": self.costs and [each.to_json() for each in self.costs],
            "influence": self.influence,
            "angles": self.angles,
            "suggestion": suggestion,
            "attention": attention,
        }


@dataclass(frozen=True)
class Analysis:
    """What ``analyze`` has found."""

    data: str
    sequences: int
    length: int
    energy: float
    seed: int
    models: tuple[ModelAnalysis, ...]
    against: str | None
    """The model among them that the others are held against."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "data": self.data,
            "sequences": self.sequences,
            "sequence_tokens": self.length,
            "energy": self.energy,
            "lazy_below": LAZY_BELOW,
            "seed": self.seed,
            "against": self.against,
            "models": [each.to_json() for each in self.models],
        }

    def table(self) -> str:
        """Lines for the terminal."""
        lines = []
        for each in self.models:
            text = f"{each.documents} documents, {each.tokens} tokens of {self.data}"
            loss = "" if each.loss_nats is None else f", loss {each.loss_nats:.4f} nats per token"
            lines += [f"{each.model}: {each.depth} layers on {text}{loss}"]
            lines += ["layer  max rank  mean rank  mass  prefix loss  loss without it                 influence"]
            for layer in range(each.depth):
                lines.append(_row(each, layer))
            if each.lazy is not None:
                lazy = ", ".join(map(str, each.lazy)) or "none"
                lines.append(f"lazy layers (largest rank of a head below {LAZY_BELOW}): {lazy}")
            if start := each.suggestion:
                layers = ",".join(map(str, start.layers))
                lines.append(f"to begin with, untrained: {start.depth} layers ({layers}); {start.reason}")
            lines.append("")
        return "\n".join(lines).rstrip()


def _row(model: ModelAnalysis, layer: int) -> str:
    """One layer's line of the table."""
    ranks = ["-"] * 3
    if model.attention and model.attention[layer].ranks:
        each = model.attention[layer]
        ranks = [f"{each.max_rank:.2f}", f"{each.mean_rank:.2f}", f"{each.mean_mass:.1f}"]
    losses = ["-"] * 3
    if model.prefix_nats and model.costs and model.influence:
        cost = model.costs[layer]
        losses = [
            f"{model.prefix_nats[layer + 1]:.4f}",
            f"{cost.mean:+.4f} [{cost.low:+.4f}, {cost.high:+.4f}]",
            f"{model.influence[layer]:.4f}",
        ]
    return f"{layer:>5}  {ranks[0]:>8}  {ranks[1]:>9}  {ranks[2]:>4}  {losses[0]:>11}  {losses[1]:<30}  {losses[2]:>9}"


def analyze(
    model: str | Path | Sequence[str | Path],
    *,
    data: str | Path | Sequence[str | Path],
    against: str | Path | None = None,
    out: str | Path | None = None,
    half: str = "watch",
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    energy: float = ENERGY,
    documents: int = MAX_DOCUMENTS,
    attention: bool = True,
    depth: bool = True,
    seed: int = 0,
    text_field: str = "text",
) -> Analysis:
    """Look at the layers of models: attention rank and mass, lazy layers, loss against depth, layer importance.

    Args:
        model: a folder or hub id, or several.
        data: a folder of shards (its validation text is used), or files, folders and globs of raw text.
        against: the model that the others are held against; it is analysed, too.
        out: folder for ``analysis.json``, and per model ``scores-N.csv``, ``prefixes-N.csv`` and ``blocks-N.csv``; None
            writes nothing.
        half: of the shards' validation set, "watch" or "decide"; the decide half is kept for verdicts.
        sequences: random stretches of the text that attention is looked at on.
        length: their tokens.
        energy: share of squared singular values and of squared column norms that rank and mass hold.
        documents: the first ones, that losses are measured on, each up to its first 1,024 tokens.
        attention: measure rank and mass.
        depth: measure losses of prefixes and without layers.
        seed: of the stretches.
        text_field: of JSON lines and tables.

    Raises:
        EvaluationError: no text, less text than one stretch, a model without a tokenizer, attention or a head that
            splits, values that are not finite.
    """
    names = [str(each) for each in ([model] if isinstance(model, str | Path) else model)]
    every = list(dict.fromkeys([*names, *([str(against)] if against else [])]))
    sources = [data] if isinstance(data, str | Path) else list(data)
    if sequences < 1 or length < 2 or documents < 1 or not 0 < energy <= 1:
        raise EvaluationError(
            f"{sequences} sequences of {length} tokens, {documents} documents and an energy of {energy} mean nothing. "
            "Give 1 or more, 2 or more, 1 or more, and a share up to 1."
        )
    texts = [text for text in texts_to_score(sources, half, text_field) if text.strip()]
    if not texts:
        raise EvaluationError(f"there is no text in {data}. Name shards, or files with text.")
    wanted = {"documents": documents if depth else 0, "sequences": sequences if attention else 0}
    found = tuple(_analyse(name, texts, **wanted, length=length, energy=energy, seed=seed) for name in every)
    analysis = Analysis(
        data=", ".join(map(str, sources)),
        sequences=sequences,
        length=length,
        energy=energy,
        seed=seed,
        models=found,
        against=str(against) if against else None,
    )
    if out is not None:
        _write(Path(out), analysis)
    return analysis


def _analyse(
    name: str,
    texts: Sequence[str],
    *,
    documents: int,
    sequences: int,
    length: int,
    energy: float,
    seed: int,
) -> ModelAnalysis:
    """One model; no documents leaves losses out, no sequences attention."""
    folder = resolve(name)
    tokenizer = open_tokenizer(folder)
    attention = None
    if sequences:
        ids_ST = _stretches(_tokens(tokenizer, texts), sequences, length, seed)
        attention = measure_attention(folder, ids_ST, energy=energy)
    if not documents:
        count = len(attention or ())
        return ModelAnalysis(name, count, 0, 0, None, None, None, None, None, None, attention)
    network = load_model(folder).to(best_device())
    window = min(MAX_SEQUENCE_LENGTH, fewest_positions(network.config))
    scored = [each[: window + 1] for each in _tokens(tokenizer, texts[:documents])]
    check_ids(name, network, max(int(each.max()) for each in scored))
    found = measure_depths(network, scored, sequence_length=window)
    return _with_depths(name, found, attention)


def _with_depths(name: str, found: Depths, attention: tuple[LayerAttention, ...] | None) -> ModelAnalysis:
    """Means and intervals of what was measured."""
    costs = tuple(paired_bootstrap(sums, found.full) for sums in found.without)
    return ModelAnalysis(
        model=name,
        depth=len(costs),
        documents=len(found.full),
        tokens=int(found.full[:, 1].sum()),
        loss_nats=token_mean(found.full),
        prefix_nats=tuple(token_mean(sums) for sums in found.prefixes),
        costs=costs,
        influence=tuple(map(float, found.influence)),
        angles=tuple(tuple(_finite(float(each)) for each in row) for row in found.angles),
        suggestion=suggest(costs),
        attention=attention,
    )


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
    """Documents as the model has been trained on them, end-of-text first."""
    return [np.append(tokenizer.end_of_text_id, ids) for ids in tokenizer.encode_each(texts)]


def _stretches(documents: Sequence[npt.NDArray[np.integer]], count: int, length: int, seed: int) -> Tensor:
    """Random stretches of the documents one after the other, as a training row is cut; int64 (S, T).

    Raises:
        EvaluationError: there is less text than one stretch.
    """
    stream = np.concatenate(documents).astype(np.int64)
    if len(stream) < length:
        raise EvaluationError(
            f"the text has {len(stream)} tokens, and a stretch has {length}. Give more text, or a smaller --length."
        )
    starts = np.random.default_rng(seed).integers(0, len(stream) - length + 1, count)
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]))


def _finite(value: float) -> float | None:
    """The value, or None where there is none."""
    return value if math.isfinite(value) else None


def _write(folder: Path, analysis: Analysis) -> None:
    """The JSON file, and per model the tables that ``inherit --layers "best-N FILE"`` and other programs read."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / FILE, analysis.to_json())
    for number, each in enumerate(analysis.models):
        if each.prefix_nats is None or each.costs is None or each.influence is None or each.angles is None:
            continue
        rows = [
            [layer, cost.mean, cost.low, cost.high, influence]
            for layer, (cost, influence) in enumerate(zip(each.costs, each.influence, strict=True))
        ]
        header = ["layer", "score", "score_low", "score_high", "influence"]
        runs.write_text(folder / f"scores-{number}.csv", _csv(header, rows))
        runs.write_text(folder / f"prefixes-{number}.csv", _csv(["layers", "loss_nats"], enumerate(each.prefix_nats)))
        blocks = [
            [first, last - 1, angle]
            for first, row in enumerate(each.angles)
            for last, angle in enumerate(row)
            if angle is not None
        ]
        runs.write_text(folder / f"blocks-{number}.csv", _csv(["first_layer", "last_layer", "angle"], blocks))


def _csv(header: Sequence[str], rows: Any) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
