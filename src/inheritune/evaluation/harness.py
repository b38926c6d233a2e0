"""lm_eval at arm's length: its tasks, prompts and metrics with our forward pass, or with its own.

All that is known of lm_eval stands here. What comes back is plain: for every task its items, for every item what the
model said of each continuation and the metrics that lm_eval made of it.
"""

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

from inheritune.errors import DataError, EvaluationError
from inheritune.evaluation.scorer import Answer, Scorer, Tally
from inheritune.evaluation.tasks import TASKS, Chosen

Engine = Literal["ours", "harness"]

HARNESS_BATCH = 16
"""Requests of one batch of lm_eval's own model."""

LEAST_ITEMS = 2
"""Of a task; a standard error needs two."""

TEMPLATES = 1024
"""Compiled templates that are kept: a few for each part of a task."""


@dataclass(frozen=True)
class Item:
    """One item of a task, and what a model made of it."""

    part: str
    """Name of lm_eval's task."""
    document: str
    """lm_eval's hash of the row."""
    prompt: str
    """lm_eval's hash of the prompt."""
    target: Any
    """Index of the right choice, or the text that should follow."""
    choices: tuple[str, ...]
    """Continuations, or contexts where those are what differs."""
    answers: tuple[Answer, ...]
    """What the model says of each; none where it writes text."""
    metrics: Mapping[str, Any]
    """Name to a number, or to (sum, weight)."""
    truths: tuple[int, ...] = ()
    """Indices of all right choices, where a task has several."""

    @property
    def question(self) -> tuple[Any, ...]:
        """What was asked: scores are paired where it is the same. The row's hash tells a label that was corrected."""
        return self.part, self.document, self.prompt, self.choices


@dataclass(frozen=True)
class Run:
    """What one model made of some tasks."""

    items: Mapping[str, tuple[Item, ...]]
    """Name of a task as chosen -> its items."""
    tally: Tally
    versions: Mapping[str, Any]
    """lm_eval's version of each task."""


class Tasks:
    """Tasks with their data, loaded once for all models."""

    def __init__(self, chosen: Sequence[Chosen], folder: Path) -> None:
        """Load tasks, from the files that ``tasks.choose`` has written, and from lm_eval's own for the others.

        Raises:
            DataError: the data of a task cannot be had, or lm_eval knows no such task.
        """
        self.chosen = tuple(chosen)
        parts = [part for each in chosen for part in each.parts]
        with _quiet():
            manager = _manager(parts, folder)
            try:
                loaded = manager.load(parts)
            except Exception as error:  # data sets raise what their loaders like; the cause is kept
                raise DataError(
                    f"the data of {', '.join(each.name for each in chosen)} cannot be read: {type(error).__name__}: "
                    f"{error}. Without a network, name a folder with --data (in a recipe: tasks.data)."
                ) from error
        self.loaded = loaded
        self.groups = {
            each.name: tuple(_leaves(each.parts, loaded.get("group_map", {}))) if each.metric is None else each.parts
            for each in self.chosen
        }

    def check_scorable(self) -> None:
        """Refuse tasks that the fast scorer could make no score of.

        Raises:
            EvaluationError: a task writes text, or has less than two items; an interval needs two.
        """
        for name, parts in self.groups.items():
            tasks = [self.loaded["tasks"][part] for part in parts]
            if any(task.OUTPUT_TYPE == "generate_until" for task in tasks):
                raise EvaluationError(
                    f"{name} writes text, which the fast scorer does not: a search cannot ask it. Leave it out of "
                    "tasks.suite; inheritune eval --engine harness can ask the finished child."
                )
            if sum(1 for task in tasks for _ in islice(task.eval_docs, LEAST_ITEMS)) < LEAST_ITEMS:
                raise EvaluationError(f"{name} has less than two items, of which no score can be made. Give more rows.")

    def run(
        self,
        model: Any,
        tokenizer: Any,
        *,
        window: int,
        engine: Engine = "ours",
        limit: int | None = None,
        batch: int = HARNESS_BATCH,
        progress: Callable[[int], None] | None = None,
    ) -> Run:
        """Let one model do the tasks.

        Args:
            model: a Hugging Face causal language model, float32.
            tokenizer: its Hugging Face tokenizer.
            window: most positions of one input.
            engine: whose forward pass.
            limit: the first so many items of each part; None is all.
            batch: requests of a batch of lm_eval's own.
            progress: called with the number of continuations that were scored; ours alone.

        Raises:
            EvaluationError: see ``Scorer.score``; a task that needs generation.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate

        with _quiet():
            wrapped = _wrap(model, tokenizer, window, engine, batch, progress)
            for task in self.loaded["tasks"].values():  # as lm_eval's own command does, for each model anew
                task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
                task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            try:
                told = evaluate(lm=wrapped, task_dict=self.loaded, limit=limit, bootstrap_iters=0, log_samples=True)
            except AssertionError as error:
                if engine == "ours":
                    raise
                raise EvaluationError(
                    f"lm_eval's own engine refuses an item, most likely a continuation of more than {window} tokens. "
                    "Use ours, or a larger window."
                ) from error
        assert told is not None, "one process has all results"
        items = {
            name: tuple(_item(part, sample) for part in parts for sample in _once(told["samples"][part]))
            for name, parts in self.groups.items()
        }
        tally = wrapped.scorer.tally if engine == "ours" else Tally()
        return Run(items, tally, dict(told["versions"]))


def check_known(chosen: Sequence[Chosen], folder: Path) -> None:
    """Refuse tasks that nobody knows, without a look at any data.

    Args:
        chosen: from ``tasks.choose``.
        folder: of the task files that it has written.

    Raises:
        DataError: lm_eval knows no such task.
    """
    with _quiet():
        _manager([part for each in chosen for part in each.parts], folder)


def _manager(parts: Sequence[str], folder: Path) -> Any:
    """lm_eval's tasks, ours among them; its own thousands are read only where one of them is asked for.

    Raises:
        DataError: there is no such task.
    """
    from lm_eval.tasks import TaskManager  # seconds: not before it is needed

    written = {path.stem for path in folder.glob("*.yaml")}
    manager = TaskManager(include_path=str(folder), include_defaults=bool(set(parts) - written))
    if unknown := [part for part in parts if part not in manager.all_tasks]:
        ours, theirs = (difflib.get_close_matches(unknown[0], names, n=1) for names in (TASKS, manager.all_tasks))
        near = ours or theirs
        hint = f" Nearest is {near[0]}." if near else ""
        raise DataError(f"lm_eval has no task {', '.join(unknown)}.{hint} See its list: lm_eval ls tasks")
    return manager


def _leaves(names: Sequence[str], children: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Tasks under some names; a group stands for its parts."""
    for name in names:
        yield from _leaves(children[name], children) if name in children else (name,)


def _wrap(
    model: Any, tokenizer: Any, window: int, engine: Engine, batch: int, progress: Callable[[int], None] | None
) -> Any:
    """The model as lm_eval asks it, with our forward pass or with its own."""
    from lm_eval.models.huggingface import HFLM

    class Ours(HFLM):  # type: ignore[misc]
        """Its tokenising and its windows, our log-probabilities."""

        scorer: Scorer

        def _loglikelihood_tokens(self, requests: Any, **_given: Any) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            answers = self.scorer.score(pairs, progress=progress)
            return [(answer.log_probability, answer.is_greedy) for answer in answers]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            names = ", ".join(sorted({each.task_name for each in requests}))
            raise EvaluationError(f"{names} writes text, which the fast scorer does not. Add --engine harness.")

    given = {
        "pretrained": model, "tokenizer": tokenizer, "max_length": window, "softmax_dtype": "float32",
        "batch_size": batch if engine == "harness" else 2**20,
    }  # fmt: skip
    if engine == "harness":
        return HFLM(**given)
    ours = Ours(**given)
    ours.scorer = Scorer(model, window=window)
    return ours


def _once(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each item once: a task that reads its answers in several ways logs it for each; the first way is kept."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _item(part: str, sample: Mapping[str, Any]) -> Item:
    """An item out of what lm_eval logs of it."""
    answers = tuple(map(_answer, (each for each in sample["filtered_resps"] if not isinstance(each, str))))
    texts = [tuple(map(str, each)) for each in sample["arguments"]]
    differ = 0 if len({each[0] for each in texts}) > 1 else len(texts[0]) - 1
    labels = (sample["doc"].get("mc2_targets") or {}).get("labels") if part == "truthfulqa_mc2" else None
    return Item(
        part=part,
        document=sample["doc_hash"],
        prompt=sample["prompt_hash"],
        target=sample["target"],
        choices=tuple(each[differ] for each in texts) if answers else (),
        answers=answers,
        metrics={name: _number(sample[name]) for name in sample["metrics"]},
        truths=tuple(int(each) for each in np.flatnonzero(labels)) if labels is not None else (),
    )


def _answer(answer: Any) -> Answer:
    """(log-probability, greedy), or the log-probability of a whole text."""
    return (
        Answer(float(answer[0]), bool(answer[1])) if isinstance(answer, tuple | list) else Answer(float(answer), False)
    )


def _number(value: Any) -> Any:
    """A metric as a Python number, or a tuple of them."""
    return tuple(float(each) for each in value) if isinstance(value, tuple | list) else float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's log and the bars of its data, and each of its templates compiled once: it does so for every
    item, which is half of the time of a small model."""
    import datasets
    from lm_eval.utils import env

    logger, before = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with (
            patch("lm_eval.api.task.tqdm", lambda rows, **_given: rows),
            patch.object(env, "from_string", lru_cache(TEMPLATES)(env.from_string)),
        ):
            yield
    finally:
        logger.setLevel(before)
        if not bars:
            datasets.enable_progress_bars()
