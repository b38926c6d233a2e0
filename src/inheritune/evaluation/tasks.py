"""Downstream tasks: which there are, and the files that let lm_eval read their data from a folder.

Prompts and metrics are lm_eval's own: a task file of ours includes the packaged one and changes where the data come
from (and the number of examples, where the paper's differs). The table below says what a row of each data set looks
like, so that a wrong file is refused with its line before a model is loaded.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from inheritune.errors import DataError, EvaluationError

Row = Mapping[str, Any]

LETTERS = "abcd"
"""Labels of LogiQA's options."""


@dataclass(frozen=True)
class Task:
    """A task of lm_eval that we know the data of."""

    name: str
    packaged: str
    """Its file, or the folder of its parts' files, in lm_eval's tasks."""
    hub: str
    """Where its data come from: data set, and configuration after a colon."""
    split: str
    """That is scored, as the hub names it."""
    fields: tuple[str, ...]
    """Of a row."""
    answer: Callable[[Row], tuple[Any, Sequence[Any]]] | None = None
    """A row's label and the labels it may have."""
    metric: str = "acc"
    """The one that tables show."""
    num_fewshot: int = 0
    shots: str | None = None
    """Split that the examples of a prompt are taken from."""
    part_prefix: str | None = None
    """Of the names of its parts' tasks, where it is a group."""
    split_key: str = "validation_split"
    """What lm_eval calls the split that is scored."""
    hub_changes: tuple[tuple[str, Any], ...] = ()
    """Fields to change where the data come from the hub."""


def _index(field: str, count: int) -> Callable[[Row], tuple[Any, Sequence[Any]]]:
    """Labels from 0."""
    return lambda row: (row[field], range(count))


TASKS = {
    task.name: task
    for task in (
        Task("wsc", "super_glue/wsc/default.yaml", "aps/super_glue:wsc.fixed", "validation",
             ("text", "span1_text", "span2_text", "span2_index", "label"), _index("label", 2)),
        Task("piqa", "piqa/piqa.yaml", "baber/piqa", "validation", ("goal", "sol1", "sol2", "label"),
             _index("label", 2)),
        Task("boolq", "super_glue/boolq/default.yaml", "aps/super_glue:boolq", "validation",
             ("passage", "question", "label"), _index("label", 2)),
        Task("winogrande", "winogrande/default.yaml", "allenai/winogrande:winogrande_xl", "validation",
             ("sentence", "option1", "option2", "answer"), lambda row: (row["answer"], ("1", "2"))),
        Task("logiqa", "logiqa/logiqa.yaml", "EleutherAI/logiqa:logiqa", "test",
             ("context", "question", "options", "label"),
             lambda row: (str(row["label"]).strip(), LETTERS[: len(row["options"])]), "acc_norm",
             split_key="test_split",
             hub_changes=(("dataset_name", "default"), ("dataset_kwargs", {"revision": "refs/convert/parquet"}))),
        Task("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", "truthfulqa/truthful_qa:multiple_choice", "validation",
             ("question", "mc2_targets"),
             lambda row: (_stray(row["mc2_targets"]["labels"], (0, 1)), (0, 1))),
        Task("wnli", "glue/wnli/default.yaml", "nyu-mll/glue:wnli", "validation", ("sentence1", "sentence2", "label"),
             _index("label", 2)),
        Task("qnli", "glue/qnli/default.yaml", "nyu-mll/glue:qnli", "validation", ("question", "sentence", "label"),
             _index("label", 2)),
        Task("mnli", "glue/mnli/default.yaml", "nyu-mll/glue:mnli", "validation_matched",
             ("premise", "hypothesis", "label"), _index("label", 3)),
        Task("mmlu", "mmlu/default", "cais/mmlu:SUBJECT", "test", ("question", "choices", "answer"),
             lambda row: (row["answer"], range(len(row["choices"]))), num_fewshot=5, shots="dev", part_prefix="mmlu_",
             split_key="test_split"),
        Task("arc_easy", "arc/arc_easy.yaml", "allenai/ai2_arc:ARC-Easy", "test", ("question", "choices", "answerKey"),
             lambda row: (row["answerKey"], row["choices"]["label"]), split_key="test_split"),
        Task("sciq", "sciq/sciq.yaml", "allenai/sciq", "test",
             ("question", "support", "correct_answer", "distractor1", "distractor2", "distractor3"),
             split_key="test_split"),
        Task("hellaswag", "hellaswag/hellaswag.yaml", "Rowan/hellaswag", "validation",
             ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
             lambda row: (str(row["label"]), [str(each) for each in range(len(row["endings"]))]), "acc_norm"),
        Task("lambada_openai", "lambada/lambada_openai.yaml", "EleutherAI/lambada_openai:default", "test", ("text",),
             split_key="test_split"),
        Task("blimp", "blimp", "nyu-mll/blimp:PARADIGM", "train", ("sentence_good", "sentence_bad"),
             part_prefix="blimp_"),
        Task("wikitext", "wikitext/wikitext.yaml", "EleutherAI/wikitext_document_level:wikitext-2-raw-v1", "test",
             ("page",), metric="bits_per_byte", split_key="test_split"),
    )
}  # fmt: skip
"""Every task of the suites."""

SUITES = {
    "paper": ("wsc", "piqa", "boolq", "winogrande", "logiqa", "truthfulqa_mc2", "wnli", "qnli", "mnli", "mmlu"),
    "fineweb": ("arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai"),
    "signal": ("arc_easy", "hellaswag", "lambada_openai", "piqa", "blimp", "wikitext"),
}
"""The paper's two tables (nine tasks, and MMLU with five examples; the five of its FineWeb-Edu models), and what tells
small models apart: low floors, many items."""

PROMPT_FORMS: dict[frozenset[str], dict[str, Any]] = {
    frozenset({"query", "choices", "gold"}): {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    frozenset({"context_options", "continuation", "gold"}): {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
        "metric_list": [{"metric": "acc"}],
    },
    frozenset({"context", "continuation"}): {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean"},
            {"metric": "perplexity", "aggregation": "perplexity"},
        ],
    },
}
"""Fields of a file that holds finished prompts -> how lm_eval reads it."""


class MissingRowsError(DataError):
    """A task has no rows where they were looked for."""


@dataclass(frozen=True)
class Chosen:
    """A task as it will be run."""

    name: str
    parts: tuple[str, ...]
    """Names of lm_eval's tasks whose items are scored together; itself where it has no parts."""
    metric: str | None
    """The one that tables show; None leaves it to the task."""
    own_prompts: bool = False
    """The prompts are those of a file, not lm_eval's."""
    notes: tuple[str, ...] = ()


def choose(names: Sequence[str], folder: Path, *, data: Path | None = None) -> list[Chosen]:
    """Write lm_eval's task files for some tasks, and say what to run.

    Args:
        names: of our table, ``.jsonl`` files of finished prompts, or any other task of lm_eval by its name.
        folder: empty; the task files are written into it.
        data: folder with the rows of each task, ``TASK.jsonl`` (``mmlu/SUBJECT/test.jsonl`` and ``dev.jsonl``,
            ``blimp/PARADIGM.jsonl``); None reads from the hub.

    Raises:
        DataError: a file is missing, or a row of it is not what the task needs.
        EvaluationError: lm_eval is not installed.
    """
    packaged = packaged_tasks()
    if data and not data.is_dir():
        raise DataError(
            f"there is no folder {data} with the tasks' rows. Name one, or leave --data out to read the hub."
        )
    chosen, missing = [], []
    for name in dict.fromkeys(names):
        try:
            chosen.append(_choose(name, packaged, folder, data))
        except MissingRowsError as error:  # all of them are named at once
            missing.append(str(error))
    if missing:
        raise DataError("\n".join(missing))
    return chosen


def _choose(name: str, packaged: Path, folder: Path, data: Path | None) -> Chosen:
    """One task by its name, or a file of prompts."""
    if name.endswith(".jsonl"):
        return _of_prompts(Path(name).stem, Path(name), folder)
    if name not in TASKS:
        return Chosen(name, (name,), None)
    task = TASKS[name]
    if task.part_prefix:
        return _group(task, packaged, folder, data)
    whole = data / f"{name}.jsonl" if data else None
    if whole and whole.is_file() and _prompt_form(_first_row(whole)):
        return _of_prompts(name, whole, folder)
    return _single(task, packaged, folder, whole)


def packaged_tasks() -> Path:
    """lm_eval's folder of tasks.

    Raises:
        EvaluationError: lm_eval is not installed.
    """
    found = find_spec("lm_eval")
    if found is None or found.origin is None or find_spec("accelerate") is None:
        raise EvaluationError(
            "downstream tasks need lm_eval, which is not installed. Type: pip install 'inheritune[eval]'"
        )
    return Path(found.origin).parent / "tasks"


def _single(task: Task, packaged: Path, folder: Path, file: Path | None) -> Chosen:
    """One task, its rows from a file or from the hub."""
    changes = dict(task.hub_changes)
    if file:
        check_rows(task, file)
        changes = _local(task, {task.split: file})
    _write(folder, task.name, packaged / task.packaged, task, changes)
    return Chosen(task.name, (task.name,), task.metric)


def _group(task: Task, packaged: Path, folder: Path, data: Path | None) -> Chosen:
    """A task of many parts, each with a data set of its own."""
    prefix = str(task.part_prefix)
    files = {each.stem.removeprefix(prefix): each for each in sorted((packaged / task.packaged).glob("*.yaml"))}
    files = {part: each for part, each in files.items() if not part.startswith("_")}
    notes = []
    wanted = list(files)
    if data:
        wanted = [part for part in files if _part_file(task, data, part).is_file()]
        if not wanted:
            raise MissingRowsError(_missing(task, _part_file(task, data, next(iter(files)))))
        if len(wanted) < len(files):
            notes.append(f"{len(wanted)} of {len(files)} parts; {data / task.name} has no others")
    for part in wanted:
        changes: dict[str, Any] = {}
        if data:
            rows = {task.split: _part_file(task, data, part)}
            if task.shots:
                rows[task.shots] = rows[task.split].with_name(f"{task.shots}.jsonl")
            for file in rows.values():
                check_rows(task, file)
            changes = _local(task, rows)
        _write(folder, f"{prefix}{part}", files[part], task, changes)
    return Chosen(task.name, tuple(f"{prefix}{part}" for part in wanted), task.metric, notes=tuple(notes))


def _part_file(task: Task, data: Path, part: str) -> Path:
    """Where the scored rows of a part lie."""
    return data / task.name / (f"{part}/{task.split}.jsonl" if task.shots else f"{part}.jsonl")


def _local(task: Task, rows: Mapping[str, Path]) -> dict[str, Any]:
    """Fields of a task file that reads its splits from files and has no others."""
    splits = {"training_split": None, "validation_split": None, "test_split": None, task.split_key: task.split}
    return {
        **splits,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path.resolve()) for split, path in rows.items()}},
    }


def _write(folder: Path, name: str, included: Path, task: Task, changes: Mapping[str, Any]) -> None:
    """A task file that is the packaged one but for some fields."""
    content = {"include": str(included), "task": name, "num_fewshot": task.num_fewshot, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def _of_prompts(name: str, file: Path, folder: Path) -> Chosen:
    """A task made of a file of finished prompts."""
    form = _prompt_form(_first_row(file))
    if form is None:
        forms = "; ".join(", ".join(sorted(fields)) for fields in PROMPT_FORMS)
        raise DataError(f"{file}: its rows are no finished prompts. Fields are one of: {forms}.")
    for number, row in enumerate(_rows(file), start=1):
        wanted = next(fields for fields, each in PROMPT_FORMS.items() if each is form)
        if absent := wanted - row.keys():
            raise DataError(f"{file}, line {number}: no field {', '.join(sorted(absent))}. Add it, or drop the row.")
        if "gold" in wanted:
            choices = row["choices"] if "choices" in wanted else row["context_options"]
            _check_label(file, number, row["gold"], range(len(choices)))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        "num_fewshot": 0,
        **form,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    metric = TASKS[name].metric if name in TASKS else "acc"
    known = {each["metric"] for each in form["metric_list"]}
    notes = (f"prompts are those of {file.name}, not lm_eval's",)
    return Chosen(name, (name,), metric if metric in known else "acc", own_prompts=True, notes=notes)


def _prompt_form(row: Row) -> dict[str, Any] | None:
    """How lm_eval reads a file whose first row this is; None where it holds no finished prompts."""
    return next((form for fields, form in PROMPT_FORMS.items() if fields <= row.keys()), None)


def check_rows(task: Task, file: Path) -> None:
    """Refuse a file that is missing, or a row that lacks a field or has a label that the task does not know.

    Raises:
        DataError: with file, line, and what to do.
    """
    if not file.is_file():
        raise MissingRowsError(_missing(task, file))
    number = 0
    for number, row in enumerate(_rows(file), start=1):
        if absent := [field for field in task.fields if row.get(field) is None]:
            raise DataError(
                f"{file}, line {number}: no field {', '.join(absent)}. A row of {task.name} has "
                f"{', '.join(task.fields)}."
            )
        if task.answer:
            try:
                label, allowed = task.answer(row)
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file}, line {number}: its fields are not those of {task.name}: {type(error).__name__} {error}. "
                    f"Take rows as {task.hub} has them."
                ) from error
            _check_label(file, number, label, allowed)
    if not number:
        raise DataError(f"{file} is empty. {_how_to_get(task, file)}")


def _check_label(file: Path, number: int, label: Any, allowed: Sequence[Any]) -> None:
    """A label is one of those that are allowed, and of their kind."""
    if isinstance(label, bool) or label not in allowed:
        known = ", ".join(map(str, allowed))
        raise DataError(
            f"{file}, line {number}: the label is {label!r}, and may be {known}. Correct it, or take a labelled split."
        )


def _stray(labels: Sequence[Any], allowed: Sequence[Any]) -> Any:
    """The first label that is not allowed, or one that is."""
    return next((label for label in labels if label not in allowed), allowed[0])


def _first_row(file: Path) -> Row:
    """The first row of a file."""
    for row in _rows(file):
        return row
    raise DataError(f"{file} is empty. Put one JSON object a line into it.")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON lines file, one after the other."""
    if not file.is_file():
        raise DataError(f"there is no file {file}. Name a .jsonl file that exists.")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: no JSON ({error}). Put one object a line.") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{file}, line {number}: no JSON object but {type(row).__name__}. Put one object a line."
                )
            yield row


def _missing(task: Task, file: Path) -> str:
    """What to say of a task without its data."""
    return f"the data of {task.name} are missing: there is no {file}. {_how_to_get(task, file)}"


def _how_to_get(task: Task, file: Path) -> str:
    """A line that makes a task's file, typed where there is a network."""
    source, _, name = task.hub.partition(":")
    if task.part_prefix:
        name = file.parent.name if task.shots else file.stem
    split = file.stem if task.shots else task.split
    given = f"'{source}', " + (f"'{name}', " if name else "") + f"split='{split}'"
    given += "".join(
        f", {key}={value!r}" for _, each in task.hub_changes if isinstance(each, dict) for key, value in each.items()
    )
    return (
        'Where there is a network, leave --data out, or type: python -c "from datasets import load_dataset as load; '
        f"load({given}).to_json('{file}')\""
    )
