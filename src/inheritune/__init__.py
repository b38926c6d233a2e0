"""inheritune: a small base language model from a big one.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune.analysis.analyze import analyze
    from inheritune.data.shards import prepare
    from inheritune.errors import (
        DataError,
        EvaluationError,
        InherituneError,
        RecipeError,
        Stopped,
        SurgeryError,
        TrainingError,
    )
    from inheritune.evaluation.evaluate import evaluate
    from inheritune.job import grow
    from inheritune.recipe import Recipe, TrainRecipe
    from inheritune.reporting.page import report
    from inheritune.surgery.doctor import diagnose
    from inheritune.surgery.repair import repair
    from inheritune.surgery.transplant import inherit
    from inheritune.training.stage import train

_HOMES = {
    "DataError": "errors",
    "EvaluationError": "errors",
    "InherituneError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Stopped": "errors",
    "SurgeryError": "errors",
    "TrainRecipe": "recipe",
    "TrainingError": "errors",
    "analyze": "analysis.analyze",
    "diagnose": "surgery.doctor",
    "evaluate": "evaluation.evaluate",
    "grow": "job",
    "inherit": "surgery.transplant",
    "prepare": "data.shards",
    "repair": "surgery.repair",
    "report": "reporting.page",
    "train": "training.stage",
}

__all__ = [
    "DataError",
    "EvaluationError",
    "InherituneError",
    "Recipe",
    "RecipeError",
    "Stopped",
    "SurgeryError",
    "TrainRecipe",
    "TrainingError",
    "analyze",
    "diagnose",
    "evaluate",
    "grow",
    "inherit",
    "prepare",
    "repair",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'inheritune' has no attribute {name!r}")
    return getattr(import_module(f"inheritune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
