"""What a run does not need: the right time, a place for its output, a home, the network (R22)."""

from pathlib import Path

import pytest

YEAR_S = 365 * 86400


@pytest.mark.reliability("R22")
@pytest.mark.parametrize("seconds", [-YEAR_S, YEAR_S])
def test_a_wall_clock_that_jumps_changes_nothing(seconds, stage, whole_stage, finish, differences, at_step, tmp_path):
    finish(stage(tmp_path / "out"), at_step(30, f"clock:{seconds}"))
    assert differences(whole_stage.folder, tmp_path / "out") == []


@pytest.mark.reliability("R22")
def test_a_clock_that_is_set_back_in_a_stopped_search_changes_nothing(
    search, whole_search, finish, differences, tmp_path, full
):
    if not full:
        pytest.skip("the long form alone: the short one sets the clock in a training")
    words = search(tmp_path / "run")
    finish(words, {"at": "rename", "match": "round-1/start$", "do": "signal:9"}, code=-9)
    finish(words, {"at": "start", "do": f"clock:-{YEAR_S}"}, code=5)
    assert differences(whole_search.folder, tmp_path / "run") == []


@pytest.mark.reliability("R22")
def test_a_full_disk_of_logs_changes_nothing_and_the_exit_code_is_the_run_s_own(
    search, stage, whole_search, whole_stage, finish, differences, tmp_path
):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    finish(search(tmp_path / "run"), code=5, log=full)
    assert differences(whole_search.folder, tmp_path / "run") == []
    finish(stage(tmp_path / "stage"), log=full)
    assert differences(whole_stage.folder, tmp_path / "stage") == []
    finish(stage(tmp_path / "stage", peak_lr=2e-3), code=2, log=full)  # an error has its own code, heard or not


@pytest.mark.reliability("R22")
def test_a_run_needs_neither_a_home_nor_the_network(search, whole_search, finish, differences, tmp_path, full):
    nowhere = {"HOME": "/dev/null/home", "HF_ENDPOINT": "http://127.0.0.1:9"}  # no folder can be made there, by anyone
    places = ("XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "TORCH_HOME")
    nowhere |= dict.fromkeys(places, "/dev/null/cache") if full else {}
    for offline in ("1", "0") if full else ("1",):
        folder = tmp_path / offline
        finish(search(folder), code=5, apart=True, environment={**nowhere, "HF_HUB_OFFLINE": offline})
        assert differences(whole_search.folder, folder) == []
