"""One process in a folder (R19)."""

import signal
import time

import pytest


@pytest.mark.reliability("R19")
@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(
    verb, search, stage, whole_search, whole_stage, start, finish, differences, tmp_path
):
    folder = tmp_path / "out"
    words = search(folder) if verb == "run" else stage(folder)
    slow = {"at": "inheritune.training.learner:accumulate_gradient", "count": 3, "do": "sleep:60"}
    first = start(words, slow)
    while first.look() is None and "train" not in text_of(folder / "metrics.jsonl"):
        time.sleep(0.001)
    assert first.look() is None, first.said
    second = finish(words, code=2)
    assert f"another process is at work in {folder}" in second.said
    assert first.look() is None  # it is left alone
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    finish(words, code=5 if verb == "run" else 0)
    whole = whole_search if verb == "run" else whole_stage
    assert differences(whole.folder, folder) == []


def text_of(path):
    return path.read_text(encoding="utf-8") if path.exists() else ""
