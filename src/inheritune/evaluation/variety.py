"""The generation probe: fixed prompts, greedy and sampled, and how much each model repeats itself.

Cutting depth can do damage that a loss hides: text that turns in circles. So models are put side by side on the same
prompts under the same seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.evaluation.generation import distinct_n, write

PROMPTS = (
    "The house stood at the end of the road, and",
    "In the year 1851 the city",
    "To make bread you need",
    "The most important result of this study is that",
    "def read_lines(path):\n    ",
    '"I do not believe you," she said. "',
    "Water boils when",
    "Once upon a time there was",
)
"""Openings of several kinds of text."""

REPEATED_WORDS = 4
"""Length of the word sequences whose return counts as repetition."""

SAMPLING_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Texts:
    """What one model wrote in one way, and how varied it is."""

    texts: tuple[str, ...]
    distinct_1: float
    """Share of different words among all, over all texts."""
    distinct_2: float
    """The same of pairs of words."""
    repetition: float
    """Mean share of a text's sequences of four words that have occurred in it before, from 0 to 1."""


@dataclass(frozen=True)
class Probe:
    """What each model wrote."""

    prompts: tuple[str, ...]
    seed: int
    temperature: float
    models: dict[str, dict[str, Texts]]
    """Model -> "greedy" or "sampled" -> what it wrote."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def table(self) -> str:
        """Lines for the terminal: the measures, then the texts of all models prompt by prompt."""
        width = max(map(len, self.models))
        lines = [f"{'model':<{width}}  {'way':<7}  distinct-1  distinct-2  repetition"]
        for name, ways in self.models.items():
            lines += [
                f"{name:<{width}}  {way:<7}  {each.distinct_1:10.3f}  {each.distinct_2:10.3f}  {each.repetition:10.3f}"
                for way, each in ways.items()
            ]
        for number, prompt in enumerate(self.prompts):
            lines += ["", f"prompt: {prompt}"]
            lines += [
                f"  {name}, {way}: {each.texts[number]}"
                for name, ways in self.models.items()
                for way, each in ways.items()
            ]
        return "\n".join(lines)


def repetition(text: str, n: int = REPEATED_WORDS) -> float:
    """Share of a text's n-grams of words that have occurred in it before; 0 for a text of fewer than n words.

    Source: arXiv:1908.04319, seq-rep-n, on words, so that models with different tokenizers compare.
    """
    words = text.split()
    count = len(words) - n + 1
    return 1 - len({tuple(words[begin : begin + n]) for begin in range(count)}) / count if count > 0 else 0.0


def probe(
    models: Sequence[str | Path],
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 64,
    temperature: float = SAMPLING_TEMPERATURE,
    seed: int = 0,
) -> Probe:
    """Let every model continue the same prompts, greedily and sampled.

    Args:
        models: folders or hub ids.
        prompts: texts.
        max_new_tokens: length of a continuation.
        temperature: of the sampling, above 0.
        seed: of the sampling, the same for every model.

    Raises:
        EvaluationError: see ``write``.
    """
    found = {}
    for model in map(str, dict.fromkeys(models)):
        ways = {"greedy": 0.0, "sampled": temperature}
        found[model] = {
            way: _measured(write(model, prompts, max_new_tokens=max_new_tokens, seed=seed, temperature=heat))
            for way, heat in ways.items()
        }
    return Probe(tuple(prompts), seed, temperature, found)


def _measured(texts: Sequence[str]) -> Texts:
    """Texts with their measures."""
    mean = sum(map(repetition, texts)) / len(texts)
    return Texts(tuple(texts), distinct_n(texts, 1), distinct_n(texts, 2), mean)
