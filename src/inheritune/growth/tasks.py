"""Downstream tasks during growth: each model of a search is asked once, its items are kept, and judged at the end."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from inheritune import runs
from inheritune.errors import EvaluationError, InherituneError
from inheritune.evaluation import tasks
from inheritune.evaluation.downstream import (
    chosen_metrics,
    open_for_tasks,
    tally_notes,
    task_names,
    task_window,
)
from inheritune.evaluation.harness import Run as Answers
from inheritune.evaluation.harness import Tasks, check_known
from inheritune.evaluation.item_file import read_run, write_run
from inheritune.evaluation.judging import judge
from inheritune.evaluation.scores import scores_line
from inheritune.growth.run import Run

HUB = "hub"
"""In place of a folder: rows come from the hub."""

FOLDER = "evaluation"
"""In a run's folder; the report reads it."""


def check_tasks(run: Run) -> None:
    """Refuse before anything is made what could not be scored later.

    Raises:
        DataError: rows are missing, or not what their task needs; there is no such task.
        EvaluationError: lm_eval is not installed; a task writes text, or leaves less than two items.
    """
    if run.recipe.tasks.data is not None:
        with _chosen(run) as (chosen, folder):
            check_known(chosen, folder)
            Tasks(chosen, folder).check_scorable()


def ask(run: Run, stage: str, model: Path, *, tokens: int) -> Answers | None:
    """What a saved model makes of the tasks, asked once and kept; None where the recipe names no rows.

    Args:
        run: the search.
        stage: whose folder the items are kept in.
        model: folder.
        tokens: that it was trained on; a stage that is trained on is asked again.
    """
    if run.recipe.tasks.data is None:
        return None
    path = run.stage(stage) / "validation" / f"tasks-{tokens}.jsonl.zst"
    if path.exists():
        return read_run(path)
    with _chosen(run) as (chosen, folder):
        run.progress.say(f"{stage}: scoring {len(chosen)} tasks ({', '.join(each.name for each in chosen)})")
        network, tokenizer, said = open_for_tasks(stage, model, task_window(model))
        answers = Tasks(chosen, folder).run(
            network,
            tokenizer,
            window=task_window(model),
            limit=run.recipe.tasks.limit,
            progress=lambda _answered: run.stop.check(),
        )
    for note in [*said, *tally_notes(answers.tally)]:
        run.event(stage, "note", f"{stage}: {note}")
    alone = judge(
        {stage: answers}, chosen_metrics(chosen, answers), [stage], [], suite="", window=0, engine="ours", limit=None,
        notes=(), agreement={}, published={}, published_source=None,
    )  # fmt: skip
    run.event(stage, "tasks", f"{stage} | tasks | {scores_line(alone.scores[stage])}")
    write_run(path, answers)  # last: what cannot be judged is asked again, and not found here
    return answers


def judge_tasks(run: Run, found: Mapping[str, Answers], child: str) -> None:
    """Write what the tasks say of a finished search, for the report: the child against reference and baselines.

    Args:
        run: the search.
        found: stage -> its answers, the reference first; rounds before the child's have their scores beside.
        child: the stage of the child.

    Raises:
        EvaluationError: the rows have changed since some of the models were asked.
    """
    if not found:
        return
    _check_same_items(run, found)
    asked = run.recipe.tasks
    with _chosen(run) as (chosen, _):
        notes = tuple(f"{each.name}: {note}" for each in chosen for note in each.notes)
        metrics = chosen_metrics(chosen, found[child])
    others = [stage for stage in found if not stage.startswith("round-")]
    result = judge(
        found, metrics, [child], others,
        suite=asked.suite if isinstance(asked.suite, str) else ", ".join(asked.suite),
        window=task_window(run.stage(child) / "model"), engine="ours", limit=asked.limit,
        notes=notes, agreement={}, published={}, published_source=None,
    )  # fmt: skip
    runs.write_json(run.folder / FOLDER / "downstream.json", result.to_json())
    runs.write_text(run.folder / FOLDER / "downstream.csv", result.to_csv())


def _check_same_items(run: Run, found: Mapping[str, Answers]) -> None:
    """Scores are paired item by item, and a search may have been stopped for days."""
    first, *others = found
    for name in others:
        for task, items in found[first].items.items():
            if [each.question for each in items] != [each.question for each in found[name].items[task]]:
                raise EvaluationError(
                    f"{first} and {name} were not asked the same of {task}: its rows have changed in between. Delete "
                    f"{run.folder / 'stages'}/*/validation/tasks-* and run the same command, which asks all again."
                )


@contextmanager
def _chosen(run: Run) -> Iterator[tuple[list[tasks.Chosen], Path]]:
    """The tasks that the recipe names, and the folder of their files, there as long as it is needed."""
    asked = run.recipe.tasks
    data = None if asked.data == HUB else Path(str(asked.data))
    with tempfile.TemporaryDirectory() as written:
        try:
            chosen = tasks.choose(task_names(asked.suite), Path(written), data=data)
        except InherituneError as error:
            raise type(error)(f"tasks of the recipe: {error}") from error
        yield chosen, Path(written)
