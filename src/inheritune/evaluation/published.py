"""Scores that the paper printed, as data with their source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

REFERENCE = "OpenLLaMA-3B"
"""What the paper's child was cut from."""

CHILD = "the paper's child"


@dataclass(frozen=True)
class Published:
    """One model's printed scores."""

    model: str
    tokens: str
    """It was trained on."""
    scores: Mapping[str, float]
    """Task to a share between 0 and 1."""


def published() -> tuple[str, tuple[Published, ...]]:
    """Where the scores come from, and the models."""
    content = json.loads(files("inheritune.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
    models = tuple(
        Published(name, each["tokens"], {task: score / 100 for task, score in each["scores"].items()})
        for name, each in content["models"].items()
    )
    return content["source"], models
