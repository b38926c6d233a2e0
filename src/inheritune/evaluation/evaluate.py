"""``evaluate``: the loss of models on text, or their scores on tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from inheritune.errors import RecipeError
from inheritune.evaluation.compare import Evaluation, evaluate_loss
from inheritune.evaluation.downstream import evaluate_tasks
from inheritune.evaluation.scores import Downstream

Models = str | Path | Sequence[str | Path]


@overload
def evaluate(
    model: Models, *, data: str | Path | Sequence[str | Path], suite: None = None, against: Models = (), **settings: Any
) -> Evaluation: ...


@overload
def evaluate(
    model: Models, *, data: str | Path | None = None, suite: str | Sequence[str], against: Models = (), **settings: Any
) -> Downstream: ...


def evaluate(
    model: Models,
    *,
    data: Any = None,
    suite: str | Sequence[str] | None = None,
    against: Models = (),
    **settings: Any,
) -> Evaluation | Downstream:
    """Score models on the same documents or the same items, paired with those they are held against.

    Args:
        model: a folder or hub id, or several.
        data: shards, or files, folders and globs of raw text; with ``suite`` the folder of the tasks' rows, None reads
            them from the hub.
        suite: downstream tasks: "paper", "fineweb", "signal", or a list of names; None scores the loss.
        against: models to compare with, the reference first.
        settings: further ones of ``evaluation.compare.evaluate_loss`` (half, sequence_length, text_field) or of
            ``evaluation.downstream.evaluate_tasks`` (window, engine, verify, limit, with_published, out, progress).

    Raises:
        RecipeError: neither data nor suite, or see there.
        DataError: see there.
        EvaluationError: see there.
    """
    if suite is not None:
        return evaluate_tasks(model, suite=suite, data=data, against=against, **settings)
    if data is None:
        raise RecipeError("nothing to score on: give data (shards or text), or suite (tasks).")
    return evaluate_loss(model, data=data, against=against, **settings)
