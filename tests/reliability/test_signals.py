"""A polite stop: exit code 4, a checkpoint of the step it stands at, and an exact resume (R11)."""

import signal
import time

import pytest

from inheritune.machine.probe import has_compiler
from inheritune.training.checkpoint import find_checkpoint

TERM, TWICE, INTERRUPT = (f"signal:{numbers}" for numbers in ("15", "15+15", "2"))
STEP = {"at": "inheritune.training.learner:accumulate_gradient", "count": 20}
SAVE = {"at": "fsync", "match": r"step-.*\.tmp/\.manifest", "count": 2}
VALIDATION = {"at": "inheritune.evaluation.token_loss:_score_batch", "count": 3}


def steps_of(metrics, folder):
    return [line["step"] for line in metrics(folder) if line["kind"] == "train"]


@pytest.mark.reliability("R11")
@pytest.mark.parametrize(
    "fault",
    [{**STEP, "do": TERM}, {**SAVE, "do": TERM}, {**VALIDATION, "do": TERM}, {**STEP, "do": INTERRUPT}],
    ids=["SIGTERM in a step", "SIGTERM in a save", "SIGTERM in a validation", "SIGINT in a step"],
)
def test_a_stop_saves_the_step_it_stands_at(fault, stage, whole_stage, finish, differences, metrics, tmp_path):
    words = stage(tmp_path / "parts")
    process = finish(words, fault, code=4)
    assert "Run the same command to go on" in process.said
    (*_, last) = steps_of(metrics, tmp_path / "parts")
    assert find_checkpoint(tmp_path / "parts" / "checkpoints").name == f"step-{last:08d}"
    if fault["at"] == STEP["at"]:
        assert last == STEP["count"]  # the step that was under way was made, and no other
    finish(words)
    assert differences(whole_stage.folder, tmp_path / "parts") == []


@pytest.mark.reliability("R11")
@pytest.mark.parametrize("do", [TWICE, "signal:2+2"], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_it_at_once_and_the_last_checkpoint_holds(
    do, stage, whole_stage, finish, differences, metrics, tmp_path
):
    words = stage(tmp_path / "parts")
    process = finish(words, {**STEP, "do": do}, code=4)
    assert "interrupted; run the same command" in process.said
    assert max(steps_of(metrics, tmp_path / "parts")) == STEP["count"] - 1  # the step under way was not made
    finish(words)
    assert differences(whole_stage.folder, tmp_path / "parts") == []


@pytest.mark.reliability("R11")
def test_a_stop_while_the_first_step_is_compiled(stage, finish, differences, metrics, tmp_path, full):
    """The short form traces without compiling: with the compiler itself this takes minutes."""
    if not has_compiler("cpu"):
        pytest.skip("there is no C++ compiler here")
    plain = {"at": "start", "do": "plain compiler"}
    real = {"at": "torch._inductor.compile_fx:compile_fx", "do": TERM}
    changes = {"compile": "true", "save_every_minutes": 10}
    finish(stage(tmp_path / "whole", **changes), *([] if full else [plain]))
    words = stage(tmp_path / "parts", **changes)
    finish(words, real if full else {"at": "compile", "do": TERM}, code=4)
    assert find_checkpoint(tmp_path / "parts" / "checkpoints").name == "step-00000001"
    finish(words, *([] if full else [plain]))
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.reliability("R11")
def test_a_search_is_stopped_in_the_preparation_of_data_in_scoring_and_from_outside(
    search, whole_search, start, finish, differences, tmp_path
):
    words = search(tmp_path / "parts")
    finish(words, {"at": "inheritune.data.tokenizer:TextTokenizer.encode_batch", "do": TERM}, code=4)
    finish(words, {"at": "inheritune.growth.scoring:score_documents", "do": TERM}, code=4)
    finish(words, {"at": "open", "match": "round-1/.result.json", "do": TERM}, code=4)
    for number, sign in ((signal.SIGTERM, "round-2"), (signal.SIGINT, "scratch")):  # and from outside
        process = start(words)
        while process.look() is None and not (tmp_path / "parts" / "stages" / sign / "probe.json").exists():
            time.sleep(0.001)
        process.signal(number)
        assert process.wait() == 4, process.said
    finish(words, code=5)
    assert differences(whole_search.folder, tmp_path / "parts") == []
