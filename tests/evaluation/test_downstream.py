"""Downstream tasks from rows to scores, by lm_eval's prompts and metrics: both engines ask and answer the same."""

import json
import random

import pytest

import inheritune
from inheritune.errors import DataError, EvaluationError, RecipeError
from inheritune.evaluation.downstream import evaluate_tasks

WORDS = ["the", "layer", "child", "keeps", "first", "deep", "loss", "falls", "slowly", "and", "then", "grows"]
ITEMS = 24


def made_rows(folder):
    """Rows of a task of every kind: choices, letters behind examples, contexts, one word, pages."""
    generator = random.Random(0)

    def words(count):
        return " ".join(generator.choices(WORDS, k=count))

    def questions(count):
        return [
            {"question": words(3), "choices": [words(1) for _ in range(4)], "answer": generator.randrange(4)}
            for _ in range(count)
        ]

    made = {
        "piqa": [
            {"goal": words(4), "sol1": words(3), "sol2": words(4), "label": generator.randrange(2)}
            for _ in range(ITEMS)
        ],
        "winogrande": [
            {
                "sentence": f"{words(2)} _ {words(3)}",
                "option1": words(1),
                "option2": words(2),
                "answer": "12"[number % 2],
            }
            for number in range(ITEMS)
        ],
        "boolq": [{"passage": words(5), "question": words(3), "label": int(number % 4 > 0)} for number in range(ITEMS)],
        "lambada_openai": [{"text": words(6)} for _ in range(ITEMS)],
        "wikitext": [{"page": f" = {words(1)} = \n {words(60)} "} for _ in range(4)],
        "truthfulqa_mc2": [
            {
                "question": words(3),
                "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
                "mc2_targets": {"choices": [words(2), words(3), words(1)], "labels": [1, 1, 0]},
            }
            for _ in range(ITEMS)
        ],
        "mmlu/anatomy/dev": questions(5),
        "mmlu/anatomy/test": questions(ITEMS),
        "mmlu/virology/dev": questions(5),
        "mmlu/virology/test": questions(ITEMS // 2),
    }
    for name, rows in made.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return made_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, reference_saver):
    return reference_saver("llama", tmp_path_factory.mktemp("reference"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def child(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("child") / "child"
    inheritune.inherit(reference, folder, layers=2)
    return folder


TASKS = ["piqa", "winogrande", "boolq", "lambada_openai", "wikitext", "truthfulqa_mc2", "mmlu"]


@pytest.fixture(scope="module")
def scored(child, reference, rows, tmp_path_factory):
    """Child against reference on every kind of task, both engines on all items."""
    out = tmp_path_factory.mktemp("out")
    return evaluate_tasks(child, suite=TASKS, data=rows, against=reference, verify=ITEMS, out=out), out


def test_both_engines_ask_and_answer_the_same(scored, child, reference):
    found, _ = scored
    for name in (child, reference):
        each = found.agreement[str(name)]
        assert each.items == 5 * ITEMS + 4 + ITEMS + ITEMS // 2
        assert each.holds
        assert each.largest_relative_difference < 1e-5


def test_every_task_is_scored_with_its_items_and_floors(scored, child):
    found, _ = scored
    scores = {each.task: each for each in found.scores[str(child)]}
    assert list(scores) == TASKS
    assert scores["piqa"].chance == 0.5
    assert scores["piqa"].majority is None
    assert scores["boolq"].majority == scores["boolq"].floor == 0.75
    assert scores["truthfulqa_mc2"].chance == pytest.approx(2 / 3)
    assert scores["mmlu"].items == ITEMS + ITEMS // 2
    assert scores["mmlu"].chance == 0.25
    assert scores["mmlu"].majority >= 0.25
    assert scores["wikitext"].metric == "bits_per_byte"
    assert scores["winogrande"].items == ITEMS


def test_child_and_reference_are_compared_item_by_item(scored, child, reference):
    found, _ = scored
    assert [each.task for each in found.differences] == TASKS
    scores = {name: {each.task: each.score for each in found.scores[str(name)]} for name in (child, reference)}
    for each in found.differences:
        assert (each.model, each.against) == (str(child), str(reference))
        expected = scores[child][each.task] - scores[reference][each.task]
        assert each.interval.mean == pytest.approx(expected, abs=1e-12)
        assert each.interval.low <= each.interval.mean <= each.interval.high
        assert (each.p_value is None) == (each.task in ("wikitext", "truthfulqa_mc2"))


def test_the_same_scores_by_the_harness_s_own_engine(scored, child, rows):
    found, _ = scored
    theirs = evaluate_tasks(child, suite=TASKS, data=rows, engine="harness")
    for mine, other in zip(found.scores[str(child)], theirs.scores[str(child)], strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-6)
        assert mine.stderr == pytest.approx(other.stderr, abs=1e-6)


def test_files_hold_what_was_found(scored):
    found, out = scored
    plain = json.loads((out / "downstream.json").read_text())
    assert plain["reference"] == found.reference
    assert {name: len(scores) for name, scores in plain["scores"].items()} == dict.fromkeys(found.models, len(TASKS))
    assert (out / "downstream.csv").read_text() == found.to_csv()


def test_printed_scores_stand_beside_the_suite_paper_s(child, rows):
    found = evaluate_tasks(child, suite=["piqa", "mmlu"], data=rows, limit=4, with_published=True)
    assert found.published["the paper's child"]["piqa"] == pytest.approx(0.5647)
    assert "OPT-1.3B †" in found.table()
    assert "2404.08634" in found.published_source


def test_what_does_not_fit_the_window_is_said(child, rows):
    found = evaluate_tasks(child, suite=["mmlu"], data=rows, window=64, limit=3)
    assert any("24 continuations have a context that is longer than the window" in note for note in found.notes)


def test_a_window_beyond_a_table_of_positions_is_refused(rows, tmp_path, reference_saver):
    model = reference_saver("gpt2", tmp_path / "gpt2")
    with pytest.raises(RecipeError, match="reads its positions from a table of 128"):
        evaluate_tasks(model, suite=["piqa"], data=rows, window=129)


def test_a_window_beyond_computed_positions_is_a_note(child, rows):
    found = evaluate_tasks(child, suite=["piqa"], data=rows, window=2000, limit=2)
    assert any("was made for 1024 positions" in note for note in found.notes)


def test_a_model_without_a_tokenizer_is_named(rows, tmp_path, reference_saver):
    bare = reference_saver("llama", tmp_path / "bare", False)
    with pytest.raises(EvaluationError, match="bare cannot be given text"):
        evaluate_tasks(bare, suite=["piqa"], data=rows)


def test_another_model_s_tokenizer_is_told(rows, tmp_path, reference_saver):
    small = reference_saver("llama", tmp_path / "small", vocab_size=200)
    with pytest.raises(EvaluationError, match=r"small cannot be given text: .* do not belong together"):
        evaluate_tasks(small, suite=["piqa"], data=rows)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"suite": "signals"}, RecipeError, "there is no suite 'signals'. Choose paper, fineweb, signal"),
        ({"suite": []}, RecipeError, "no task named"),
        ({"model": [], "suite": ["piqa"]}, EvaluationError, "no model is named"),
        ({"suite": ["piqa"], "limit": 1}, RecipeError, "a limit of 1 leaves nothing"),
        ({"suite": ["piqa"], "engine": "theirs"}, RecipeError, "there is no engine 'theirs'"),
        ({"suite": ["hellaswag"]}, DataError, "the data of hellaswag are missing"),
    ],
)
def test_what_cannot_be_done_is_refused(given, error, said, child, rows):
    with pytest.raises(error, match=said):
        evaluate_tasks(**{"model": child, "data": rows, **given})


def test_a_task_that_nobody_knows_is_named(child, rows):
    with pytest.raises(DataError, match="lm_eval has no task no_such_task"):
        evaluate_tasks(child, suite=["no_such_task"], data=rows)


def test_progress_counts_every_continuation(child, rows):
    counted = []
    evaluate_tasks(child, suite=["piqa", "boolq"], data=rows, limit=5, progress=counted.append)
    assert sum(counted) == 2 * 5 * 2


def test_a_template_is_compiled_once_and_not_for_every_item(child, rows, monkeypatch):
    from lm_eval.utils import env

    compiled, honest = [], env.compile
    monkeypatch.setattr(env, "compile", lambda source, *given: compiled.append(source) or honest(source, *given))
    evaluate_tasks(child, suite=["piqa", "boolq"], data=rows)
    assert "Question: {{goal}}\nAnswer:" in compiled
    assert max(compiled.count(each) for each in compiled) <= 2  # when the data are loaded, and when they are asked
