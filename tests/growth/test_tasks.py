"""Tasks during growth: every model of the search is asked once, and the report says what the scores are worth."""

import json
import os
import random
import signal

import pytest
from lm_eval.api.task import ConfigurableTask

from inheritune.errors import DataError, EvaluationError, Stopped
from inheritune.evaluation import tasks as task_table
from inheritune.evaluation.downstream import evaluate_tasks
from inheritune.evaluation.harness import Tasks
from inheritune.evaluation.item_file import read_run
from inheritune.job import grow
from inheritune.recipe import TasksRecipe
from inheritune.training.sinks import Silent

WORDS = ["the", "layer", "child", "keeps", "first", "deep", "loss", "falls", "slowly", "and", "then", "grows"]
ITEMS = 30


def write_rows(folder, seed=0):
    generator = random.Random(seed)

    def words(count):
        return " ".join(generator.choices(WORDS, k=count))

    made = {
        "piqa": [
            {"goal": words(2), "sol1": words(2), "sol2": words(2), "label": generator.randrange(2)}
            for _ in range(ITEMS)
        ],
        "lambada_openai": [{"text": words(6)} for _ in range(ITEMS)],
    }
    folder.mkdir(exist_ok=True)
    for name, lines in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def asked(tmp_path):
    return {"data": str(write_rows(tmp_path / "rows")), "suite": ["piqa", "lambada_openai"]}


@pytest.fixture
def found(recipe, asked, tmp_path, lines, read):
    """A finished search of two rounds with tasks: its record, and what was said."""
    grow(recipe(growth__target=0.1, tasks=asked), progress=lines)
    return read(tmp_path / "run" / "evaluation" / "downstream.json"), lines.said


def test_the_suites_that_a_recipe_may_name_are_those_that_there_are():
    annotation = TasksRecipe.model_fields["suite"].annotation
    assert set(annotation.__args__[0].__args__) == set(task_table.SUITES)
    assert TasksRecipe().suite == "signal"


def test_every_model_of_a_search_is_scored_and_the_child_held_against_the_others(found, tmp_path):
    record, said = found
    assert list(record["scores"]) == ["reference", "round-1", "round-2", "scratch"]
    assert {(each["model"], each["against"]) for each in record["differences"]} == {
        ("round-2", "reference"),
        ("round-2", "scratch"),
    }
    for scores in record["scores"].values():
        assert [(each["task"], each["items"]) for each in scores] == [("piqa", ITEMS), ("lambada_openai", ITEMS)]
    for name in record["scores"]:
        assert any(line.startswith(f"{name} | tasks | piqa ") for line in said)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "lambada_openai" in page
    assert "round-2 minus reference" in page


def test_scores_of_a_search_are_those_of_the_verb(found, tmp_path, asked):
    record, _ = found
    model = tmp_path / "run" / "model"
    again = evaluate_tasks(model, suite=asked["suite"], data=asked["data"])
    scores = [each.score for each in again.scores[str(model)]]
    assert [each["score"] for each in record["scores"]["round-2"]] == pytest.approx(scores, abs=1e-12)


def test_a_search_that_was_stopped_asks_no_model_twice(recipe, asked, tmp_path, monkeypatch):
    asks, honest = [], Tasks.run

    def asking(self, *given, **named):
        asks.append(self)
        if len(asks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # while the first round's child is asked
        return honest(self, *given, **named)

    monkeypatch.setattr(Tasks, "run", asking)
    with pytest.raises(Stopped):
        grow(recipe(tasks=asked), progress=Silent())
    whole = grow(recipe(tasks=asked), progress=Silent())
    models = len(whole.summary["rounds"]) + 2
    assert len(asks) == models + 1
    (tmp_path / "run" / "summary.json").unlink()  # as if killed before the end
    again = grow(recipe(tasks=asked), progress=Silent())
    assert len(asks) == models + 1
    assert again.summary == whole.summary


def test_missing_rows_are_told_before_anything_is_made(recipe, asked, tmp_path):
    (tmp_path / "rows" / "piqa.jsonl").unlink()
    with pytest.raises(DataError, match=r"tasks of the recipe: the data of piqa are missing"):
        grow(recipe(tasks=asked), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()
    assert not (tmp_path / "run" / "stages").exists()


def test_a_task_that_nobody_knows_is_told_before_anything_is_made(recipe, asked, tmp_path):
    with pytest.raises(DataError, match=r"no task pica\. Nearest is piqa\."):
        grow(recipe(tasks={**asked, "suite": ["pica"]}), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()
    assert not (tmp_path / "run" / "stages").exists()


def test_rows_that_change_under_a_search_are_told(recipe, asked, tmp_path):
    grow(recipe(tasks=asked), progress=Silent())
    write_rows(tmp_path / "rows", seed=1)
    (tmp_path / "run" / "summary.json").unlink()
    (one,) = (tmp_path / "run" / "stages" / "scratch" / "validation").glob("tasks-*")
    one.unlink()
    with pytest.raises(EvaluationError, match=r"reference and scratch were not asked the same of piqa"):
        grow(recipe(tasks=asked), progress=Silent())


def test_a_label_that_is_corrected_under_a_search_is_told(recipe, asked, tmp_path):
    grow(recipe(tasks=asked), progress=Silent())
    file = tmp_path / "rows" / "piqa.jsonl"
    first, *others = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    first["label"] = 1 - first["label"]
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, *others)), encoding="utf-8")
    (tmp_path / "run" / "summary.json").unlink()
    (one,) = (tmp_path / "run" / "stages" / "scratch" / "validation").glob("tasks-*")
    one.unlink()
    with pytest.raises(EvaluationError, match=r"reference and scratch were not asked the same of piqa"):
        grow(recipe(tasks=asked), progress=Silent())


def test_a_task_of_a_single_row_is_told_before_anything_is_made(recipe, asked, tmp_path):
    file = tmp_path / "rows" / "piqa.jsonl"
    file.write_text(file.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"piqa has less than two items"):
        grow(recipe(tasks=asked), progress=Silent())
    assert not (tmp_path / "run" / "data").exists()
    assert not (tmp_path / "run" / "stages").exists()


def test_a_task_that_writes_text_is_told_before_anything_is_made(recipe, asked, tmp_path, monkeypatch):
    made = ConfigurableTask.__init__

    def writing(self, *given, **named):
        made(self, *given, **named)
        self.OUTPUT_TYPE = "generate_until"

    monkeypatch.setattr(ConfigurableTask, "__init__", writing)
    with pytest.raises(EvaluationError, match=r"piqa writes text.*Leave it out of tasks\.suite"):
        grow(recipe(tasks=asked), progress=Silent())
    assert not (tmp_path / "run" / "stages").exists()


def test_what_was_said_of_the_child_stands_apart_once_the_search_goes_on(recipe, asked, tmp_path, lines):
    grow(recipe(growth__target=0.1, growth__max_depth=2, tasks=asked), progress=Silent())
    told = tmp_path / "run" / "evaluation" / "downstream.json"
    before = told.read_text(encoding="utf-8")
    grow(recipe(growth__target=0.1, growth__max_depth=4, tasks=asked), progress=lines)
    assert told.read_text(encoding="utf-8") != before
    assert (tmp_path / "run" / "evaluation.before" / "downstream.json").read_text(encoding="utf-8") == before
    assert any("evaluation is of the child as it was" in line for line in lines.said)


def test_items_can_be_looked_up(found, tmp_path):
    record, _ = found
    (file,) = (tmp_path / "run" / "stages" / "round-2" / "validation").glob("tasks-*")
    items = read_run(file).items["piqa"]
    right = sum(each.metrics["acc"] for each in items) / len(items)
    assert record["scores"]["round-2"][0]["score"] == pytest.approx(right)


def test_without_rows_no_model_is_asked(recipe, tmp_path):
    grow(recipe(), progress=Silent())
    assert not (tmp_path / "run" / "evaluation").exists()
