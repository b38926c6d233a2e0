"""A search that grows its trained child, and one that is given more, killed at random times (R1)."""

import random
import shutil
import signal
import time

import pytest

pytestmark = pytest.mark.reliability("R1")


def kill_at_random(words, start, seconds, kills, generator):
    """Start and kill so often, unless it comes to its end before."""
    for _ in range(kills):
        process = start(words)
        if process.wait(generator.uniform(0.1, 0.6) * seconds, required=False) is None:
            process.signal(signal.SIGKILL)
            process.wait()


def test_a_trained_child_that_grows_is_the_same_however_often_the_search_is_killed(
    search, start, finish, differences, tmp_path, full
):
    more = ("llama", "--growth.mode", "continue")
    begin = time.monotonic()
    finish(search(tmp_path / "whole", *more), code=5)
    seconds = time.monotonic() - begin
    words = search(tmp_path / "parts", *more)
    kill_at_random(words, start, seconds, 20 if full else 3, random.Random(2))
    finish(words, code=5)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_a_search_that_is_given_more_is_the_same_however_often_it_is_killed(
    search, start, finish, differences, tmp_path, full
):
    grown = ("llama", "--growth.mode", "continue")
    more = (*grown, "--train.passes", "6")
    finish(search(tmp_path / "parts", *grown), code=5)
    shutil.copytree(tmp_path / "parts", tmp_path / "whole")
    begin = time.monotonic()
    finish(search(tmp_path / "whole", *more), code=5)
    seconds = time.monotonic() - begin
    words = search(tmp_path / "parts", *more)
    kill_at_random(words, start, seconds, 20 if full else 3, random.Random(3))
    finish(words, code=5)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
