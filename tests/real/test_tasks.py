"""Downstream tasks on real files and a really pretrained model: both engines agree, floors are as known.

Cut to 200 items here; whole in the long form (INHERITUNE_FULL=1).
"""

import json

import pytest
from eval_rows import MAKERS, write_rows

from inheritune.evaluation.downstream import evaluate_tasks

pytestmark = pytest.mark.timeout(3600)  # the long form scores some sixty thousand items

CUT = 200
VERIFIED = 5
"""Items of each part that both engines score."""

KNOWN = {
    "arc_easy": (2376, 0.25), "piqa": (1838, 0.5), "boolq": (3270, 0.5), "winogrande": (1267, 0.5),
    "logiqa": (651, 0.25), "truthfulqa_mc2": (817, None), "wnli": (71, 0.5), "lambada_openai": (5153, 0.0),
    "wikitext": (62, 8.0),    "hellaswag": (1000, 0.25),
}  # fmt: skip
"""Items of each file, and what guessing gives; from the sets' own descriptions."""


@pytest.fixture(scope="module")
def rows(shared_data, tmp_path_factory):
    return write_rows(shared_data / "eval", tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def scored(rows, stories260k, full):
    """Every task that there is a file of, but BLiMP."""
    return evaluate_tasks(stories260k, suite=list(MAKERS), data=rows, limit=None if full else CUT, with_published=True)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_what_the_files_say(rows, shared_data):
    """Contexts rebuilt from WinoGrande's sentences are those that the file has."""
    given = lines_of(shared_data / "eval" / "winogrande" / "winogrande.jsonl")
    for before, after in zip(given, lines_of(rows / "winogrande.jsonl"), strict=True):
        begin, rest = after["sentence"].split("_", 1)
        assert [begin + after[name] for name in ("option1", "option2")] == before["context_options"]
        assert rest.strip() == before["continuation"].strip()


def test_both_engines_agree_on_real_files(rows, stories260k):
    found = evaluate_tasks(stories260k, suite=[*MAKERS, "blimp"], data=rows, limit=2, verify=VERIFIED)
    (each,) = found.agreement.values()
    assert each.items == VERIFIED * (len(MAKERS) + 45)
    assert each.holds
    assert each.largest_relative_difference < 1e-5


def test_floors_and_marks_on_real_files(scored, stories260k, full):
    scores = {each.task: each for each in scored.scores[str(stories260k)]}
    for name, (items, chance) in KNOWN.items():
        assert scores[name].items == (items if full else min(items, CUT))
        if chance is not None:
            assert scores[name].chance == pytest.approx(chance, abs=0.01)
    assert scores["wnli"].majority == pytest.approx(40 / 71)
    if full:
        assert scores["boolq"].majority == pytest.approx(0.622, abs=1e-3)
    assert not scores["wikitext"].at_floor  # it has learned English
    assert scores["logiqa"].at_floor  # but no logic: 260 thousand parameters


def test_the_printed_table_with_real_tasks(scored):
    table = scored.table()
    assert "the paper's child †" in table
    assert "not distinguishable from the floor on" in table


def test_all_of_blimp_that_there_is(rows, stories260k, full):
    if not full:
        pytest.skip("45 thousand pairs: in the long form")
    found = evaluate_tasks(stories260k, suite=["blimp"], data=rows)
    (score,) = found.scores[str(stories260k)]
    assert score.items == 45_000
    assert not score.at_floor
