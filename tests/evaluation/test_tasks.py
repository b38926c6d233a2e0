"""Task files that read rows from a folder, and rows that are not what a task needs."""

import json

import pytest
import yaml

from inheritune.errors import DataError, EvaluationError
from inheritune.evaluation import tasks
from inheritune.evaluation.tasks import SUITES, TASKS, choose, packaged_tasks

ROWS = {
    "wsc": {"text": "A b c", "span1_text": "A", "span2_text": "b", "span2_index": 1, "label": 1},
    "piqa": {"goal": "open", "sol1": "push", "sol2": "wait", "label": 0},
    "boolq": {"passage": "p", "question": "q", "label": 1},
    "winogrande": {"sentence": "The _ fell.", "option1": "cup", "option2": "jar", "answer": "2"},
    "logiqa": {"context": "c", "question": "q", "options": ["w", "x", "y", "z"], "label": "d"},
    "truthfulqa_mc2": {
        "question": "q",
        "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    },
    "wnli": {"sentence1": "a", "sentence2": "b", "label": 0},
    "qnli": {"question": "q", "sentence": "s", "label": 1},
    "mnli": {"premise": "p", "hypothesis": "h", "label": 2},
    "mmlu": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3},
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "sciq": {
        "question": "q",
        "support": "s",
        "correct_answer": "a",
        "distractor1": "b",
        "distractor2": "c",
        "distractor3": "d",
    },
    "hellaswag": {"ctx_a": "a", "ctx_b": "b", "activity_label": "act", "endings": ["x", "y", "z", "w"], "label": "3"},
    "lambada_openai": {"text": "a b c"},
    "blimp": {"sentence_good": "a", "sentence_bad": "b"},
    "wikitext": {"page": "some text"},
}
"""A row of every task."""


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files_of(name, data):
    """Every file that a task is read from."""
    if name == "mmlu":
        return [data / "mmlu" / "anatomy" / f"{split}.jsonl" for split in ("test", "dev")]
    return [data / "blimp" / "wh_island.jsonl" if name == "blimp" else data / f"{name}.jsonl"]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "task-files"
    made.mkdir()
    return made


def test_suites_are_made_of_known_tasks():
    assert {name for suite in SUITES.values() for name in suite} == set(TASKS)
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_file_of_a_task_is_the_packaged_one_with_other_data(name, tmp_path, folder):
    files = [write(file, ROWS[name]) for file in files_of(name, tmp_path / "rows")]
    (chosen,) = choose([name], folder, data=tmp_path / "rows")
    assert chosen.metric == TASKS[name].metric
    assert not chosen.own_prompts
    (part,) = chosen.parts
    content = yaml.safe_load((folder / f"{part}.yaml").read_text())
    assert content["include"].startswith(str(packaged_tasks()))
    assert content["dataset_path"] == "json"
    assert sorted(content["dataset_kwargs"]["data_files"].values()) == sorted(map(str, files))
    assert content[TASKS[name].split_key] == TASKS[name].split
    assert content["num_fewshot"] == (5 if name == "mmlu" else 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_without_a_folder_the_data_stay_the_hub_s(name, folder):
    (chosen,) = choose([name], folder)
    assert len(chosen.parts) == {"mmlu": 57, "blimp": 67}.get(name, 1)
    content = yaml.safe_load((folder / f"{chosen.parts[0]}.yaml").read_text())
    assert "dataset_path" not in content


@pytest.mark.parametrize("name", sorted(TASKS))
def test_missing_data_are_named_with_a_line_that_gets_them(name, tmp_path, folder):
    with pytest.raises(DataError) as error:
        choose([name], folder, data=tmp_path)
    said = str(error.value)
    source, _, config = TASKS[name].hub.partition(":")
    assert f"the data of {name} are missing: there is no {tmp_path}" in said
    assert f"load('{source}'" in said
    assert "SUBJECT" not in said
    assert "PARADIGM" not in said
    assert not config or config.isupper() or repr(config) in said
    line = said.split('python -c "')[1].rstrip('"')
    compile(line, "line", "exec")  # it can be typed


def test_all_that_is_missing_is_named_at_once(tmp_path, folder):
    write(tmp_path / "piqa.jsonl", ROWS["piqa"])
    with pytest.raises(DataError) as error:
        choose(SUITES["fineweb"], folder, data=tmp_path)
    for name in SUITES["fineweb"]:
        assert (f"the data of {name} are missing" in str(error.value)) == (name != "piqa")


def test_a_folder_that_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r"there is no folder .*none with the tasks' rows"):
        choose(["piqa"], folder, data=tmp_path / "none")


LABELS = {
    "piqa": ("label", 2),
    "winogrande": ("answer", "3"),
    "logiqa": ("label", "e"),
    "mmlu": ("answer", 4),
    "arc_easy": ("answerKey", "C"),
    "hellaswag": ("label", "4"),
    "mnli": ("label", -1),
    "truthfulqa_mc2": ("mc2_targets", {"choices": ["a", "b"], "labels": [1, 7]}),
}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_a_wrong_label_is_named_with_its_line(name, tmp_path, folder):
    field, label = LABELS[name]
    for file in files_of(name, tmp_path):
        write(file, ROWS[name], ROWS[name], {**ROWS[name], field: label})
    shown = 7 if name == "truthfulqa_mc2" else label
    with pytest.raises(DataError, match=rf"line 3: the label is {shown!r}, and may be "):
        choose([name], folder, data=tmp_path)


def test_true_is_no_label(tmp_path, folder):
    write(tmp_path / "piqa.jsonl", {**ROWS["piqa"], "label": True})
    with pytest.raises(DataError, match="the label is True"):
        choose(["piqa"], folder, data=tmp_path)


def test_a_row_without_a_field_is_named(tmp_path, folder):
    row = {key: value for key, value in ROWS["piqa"].items() if key != "sol2"}
    write(tmp_path / "piqa.jsonl", ROWS["piqa"], row)
    with pytest.raises(
        DataError, match=r"piqa\.jsonl, line 2: no field sol2\. A row of piqa has goal, sol1, sol2, label"
    ):
        choose(["piqa"], folder, data=tmp_path)


def test_rows_of_another_shape_are_named(tmp_path, folder):
    write(tmp_path / "arc_easy.jsonl", {**ROWS["arc_easy"], "choices": ["a", "b"]})
    with pytest.raises(DataError, match=r"line 1: its fields are not those of arc_easy: TypeError"):
        choose(["arc_easy"], folder, data=tmp_path)


@pytest.mark.parametrize(("line", "said"), [("{", "line 2: no JSON"), ("[1]", "line 2: no JSON object but list")])
def test_a_line_that_is_no_row_is_named(line, said, tmp_path, folder):
    file = write(tmp_path / "piqa.jsonl", ROWS["piqa"])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=said):
        choose(["piqa"], folder, data=tmp_path)


def test_an_empty_file_is_refused(tmp_path, folder):
    write(tmp_path / "piqa.jsonl")
    with pytest.raises(DataError, match="is empty"):
        choose(["piqa"], folder, data=tmp_path)


def test_examples_that_are_missing_are_named(tmp_path, folder):
    write(tmp_path / "mmlu" / "anatomy" / "test.jsonl", ROWS["mmlu"])
    with pytest.raises(DataError, match=r"there is no .*anatomy/dev\.jsonl.*'anatomy', split='dev'"):
        choose(["mmlu"], folder, data=tmp_path)


def test_a_group_is_run_with_the_parts_that_are_there_and_says_so(tmp_path, folder):
    for part in ("wh_island", "passive_1"):
        write(tmp_path / "blimp" / f"{part}.jsonl", ROWS["blimp"])
    (chosen,) = choose(["blimp"], folder, data=tmp_path)
    assert chosen.parts == ("blimp_passive_1", "blimp_wh_island")
    assert "2 of 67 parts" in chosen.notes[0]


PROMPTS = {
    "choices": {"query": "Q", "choices": ["a", "b"], "gold": 1},
    "contexts": {"context_options": ["a", "b"], "continuation": "c", "gold": 0},
    "words": {"context": "a", "continuation": "b"},
}


@pytest.mark.parametrize("form", sorted(PROMPTS))
def test_a_file_of_prompts_is_a_task_that_says_whose_prompts_they_are(form, tmp_path, folder):
    file = write(tmp_path / "mine.jsonl", PROMPTS[form])
    (chosen,) = choose([str(file)], folder)
    assert chosen.name == "mine"
    assert chosen.own_prompts
    assert "prompts are those of mine.jsonl" in chosen.notes[0]


def test_prompts_under_a_task_s_name_are_known_as_such(tmp_path, folder):
    write(tmp_path / "piqa.jsonl", PROMPTS["choices"])
    (chosen,) = choose(["piqa"], folder, data=tmp_path)
    assert chosen.own_prompts


def test_a_prompt_s_label_is_checked(tmp_path, folder):
    file = write(tmp_path / "mine.jsonl", PROMPTS["choices"], {**PROMPTS["choices"], "gold": 2})
    with pytest.raises(DataError, match=r"line 2: the label is 2, and may be 0, 1"):
        choose([str(file)], folder)


def test_a_file_of_something_else_is_refused(tmp_path, folder):
    file = write(tmp_path / "mine.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="no finished prompts"):
        choose([str(file)], folder)
    with pytest.raises(DataError, match="there is no file"):
        choose([str(tmp_path / "none.jsonl")], folder)


def test_without_lm_eval_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"pip install 'inheritune\[eval\]'"):
        choose(["piqa"], folder)
