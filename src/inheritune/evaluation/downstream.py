"""Downstream tasks: models and tasks in, scores that say what they are worth out."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inheritune import runs
from inheritune.data.tokenizer import check_embedding, open_tokenizer
from inheritune.errors import DataError, EvaluationError, RecipeError
from inheritune.evaluation import tasks
from inheritune.evaluation.agreement import Agreement, agreement
from inheritune.evaluation.compare import fewest_positions
from inheritune.evaluation.harness import Engine, Item, Run, Tasks
from inheritune.evaluation.judging import judge
from inheritune.evaluation.published import published
from inheritune.evaluation.scorer import Tally
from inheritune.evaluation.scores import Downstream
from inheritune.machine.probe import best_device
from inheritune.surgery.folder import build_config, load_model, read_config, resolve
from inheritune.surgery.positions import check_positions

WINDOW = 2048
"""Most positions of one input, or the fewest that a model has; one for all models: wikitext's loss depends on it."""


def evaluate_tasks(
    model: str | Path | Sequence[str | Path],
    *,
    suite: str | Sequence[str] = "signal",
    data: str | Path | None = None,
    against: str | Path | Sequence[str | Path] = (),
    window: int | None = None,
    engine: Engine = "ours",
    verify: int = 0,
    limit: int | None = None,
    with_published: bool | None = None,
    out: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Downstream:
    """Score models on downstream tasks, paired item by item.

    Args:
        model: a folder or hub id, or several.
        suite: "paper", "fineweb" or "signal", or task names (of ours, of lm_eval, or ``.jsonl`` files of prompts).
        data: folder with each task's rows; None reads from the hub.
        against: models to compare with, the reference first.
        window: most positions of one input; default 2048, or the fewest that a model has.
        engine: "ours", or "harness" for lm_eval's own forward pass.
        verify: items of each part that both engines score, to be compared.
        limit: the first so many items of each part; None is all.
        with_published: put the paper's printed scores beside; by default with the suite "paper".
        out: folder for ``downstream.json`` and ``downstream.csv``.
        progress: called with the number of continuations that were scored.

    Raises:
        RecipeError: no such suite or engine, or a window beyond a model's table of positions.
        DataError: see ``tasks.choose``.
        EvaluationError: lm_eval is not installed, a model without a tokenizer, or see ``Scorer.score``.
    """
    names = task_names(suite)
    if engine not in ("ours", "harness"):
        raise RecipeError(f"there is no engine {engine!r}. Choose ours or harness.")
    for value, least, what in ((limit, 2, "limit"), (window, 1, "window")):
        if value is not None and value < least:
            raise RecipeError(f"a {what} of {value} leaves nothing that a score can be made of. Give {least} or more.")
    models = [str(each) for each in ([model] if isinstance(model, str | Path) else model)]
    others = [str(each) for each in ([against] if isinstance(against, str | Path) else against)]
    if not models:
        raise EvaluationError("no model is named. Name a folder or hub id, or several.")
    folders = {name: resolve(name) for name in dict.fromkeys(models + others)}
    with tempfile.TemporaryDirectory() as written:
        chosen = tasks.choose(names, Path(written), data=Path(data) if data else None)
        loaded = Tasks(chosen, Path(written))
        found: dict[str, Run] = {}
        checked: dict[str, Agreement] = {}
        notes = [f"{each.name}: {note}" for each in chosen for note in each.notes]
        shared = window or min(map(task_window, folders.values()))
        for name, folder in folders.items():
            network, tokenizer, said = open_for_tasks(name, folder, shared)
            found[name] = loaded.run(network, tokenizer, window=shared, engine=engine, limit=limit, progress=progress)
            notes += [f"{name}: {each}" for each in [*said, *tally_notes(found[name].tally)]]
            if verify:
                both = [
                    loaded.run(network, tokenizer, window=shared, engine=each, limit=verify)
                    for each in ("ours", "harness")
                ]
                checked[name] = agreement(*both)
            del network
    metrics = chosen_metrics(chosen, found[models[0]])
    source, printed = published()
    wanted = suite == "paper" if with_published is None else with_published
    result = judge(
        found, metrics, models, others,
        suite=suite if isinstance(suite, str) else ", ".join(names), window=shared, engine=engine, limit=limit,
        notes=tuple(notes), agreement=checked,
        published={each.model: dict(each.scores) for each in printed} if wanted else {},
        published_source=source if wanted else None,
    )  # fmt: skip
    if out:
        runs.write_json(Path(out) / "downstream.json", result.to_json())
        runs.write_text(Path(out) / "downstream.csv", result.to_csv())
    return result


def task_names(suite: str | Sequence[str]) -> tuple[str, ...]:
    """The tasks of a suite, or tasks as they are named."""
    if not isinstance(suite, str):
        if not suite:
            raise RecipeError(f"no task named. Name some, or a suite: {', '.join(tasks.SUITES)}.")
        return tuple(suite)
    if suite not in tasks.SUITES:
        raise RecipeError(f"there is no suite {suite!r}. Choose {', '.join(tasks.SUITES)}, or name tasks with --task.")
    return tasks.SUITES[suite]


def task_window(folder: Path) -> int:
    """Most positions of one input that a model takes, by its config alone, up to 2,048."""
    return min(WINDOW, fewest_positions(build_config(read_config(folder))))


def open_for_tasks(name: str, folder: Path, window: int) -> tuple[Any, Any, list[str]]:
    """A model and its tokenizer, ready to be asked, and what is to be said of such a window.

    Raises:
        RecipeError: a window beyond the model's table of positions.
        EvaluationError: it has no tokenizer, or that of another model.
    """
    network = load_model(folder).to(best_device()).eval()
    said = check_positions(network, window)
    rows = int(network.get_input_embeddings().weight.shape[0])
    return network, _tokenizer(name, folder, rows), [said] if said else []


def _tokenizer(name: str, folder: Path, num_rows: int) -> Any:
    """A model's own tokenizer, as lm_eval takes it: its special tokens are its own affair.

    Raises:
        EvaluationError: there is none, or one with token ids that an embedding of ``num_rows`` rows does not have.
    """
    from transformers import AutoTokenizer

    try:
        check_embedding(open_tokenizer(folder), num_rows)
    except DataError as error:
        raise EvaluationError(f"{name} cannot be given text: {error}") from error
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def tally_notes(tally: Tally) -> list[str]:
    """What the scorer had to do."""
    notes = []
    if tally.cut_pairs:
        notes.append(
            f"{tally.cut_pairs:,} continuations have a context that is longer than the window; its end is kept"
        )
    if tally.pieced_pairs:
        notes.append(
            f"{tally.pieced_pairs:,} continuations are longer than the window and are scored in pieces of half of "
            "it, each behind the half before it; lm_eval's own engine refuses them"
        )
    if tally.branches is False:
        notes.append(
            "continuations of one context in one row do not have its own log-probabilities, so each has its row"
        )
    if tally.trunks is False:
        notes.append("its cache does not give its own log-probabilities back, so shared beginnings are computed anew")
    if tally.untried:
        notes.append("memory did not hold the trial of what could be shared, so it was not shared")
    return notes


def chosen_metrics(chosen: Sequence[tasks.Chosen], run: Run) -> dict[str, str]:
    """Task -> the metric that tables show.

    Raises:
        EvaluationError: a task without one that is a mean over items.
    """
    return {each.name: each.metric or _first_metric(run.items[each.name]) for each in chosen}


def _first_metric(items: Sequence[Item]) -> str:
    """The metric of a task that our table does not have."""
    known = [name for name in ("acc", "exact_match", "bits_per_byte") if name in items[0].metrics]
    plain = [name for name, value in items[0].metrics.items() if isinstance(value, float)]
    if not (known or plain):
        raise EvaluationError(
            f"{items[0].part} has no metric that is a mean over items: {', '.join(items[0].metrics)}."
        )
    return (known or plain)[0]
