"""A full disk stops a run with the bytes named, and costs nothing that was finished (R13).

Full is a limit on the size of files (the system says EFBIG to Python's and to safetensors' writes alike), and, where
mounting is allowed, a small file system of its own (ENOSPC).
"""

import re
import shutil
import subprocess

import pytest

from inheritune.training.checkpoint import find_checkpoint

NAMED = re.compile(r"error: .*\b\d+ bytes\b.*\bfree\b", re.DOTALL)
"""What every refusal holds: bytes needed, and what is free."""


def checkpoints_of(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.reliability("R13")
@pytest.mark.parametrize("file", ["unordered.tmp", "train-00000.bin", "watch-00000.idx", "manifest.json"])
def test_data_that_do_not_fit_leave_nothing_behind(file, text_file, tiny_shards, finish, differences, tmp_path):
    words = ["prepare", str(text_file), "--out", str(tmp_path / "data"), "--tokenizer", str(tiny_shards / "tokenizer")]
    words += ["--min-documents", "60"]
    full = {"at": "open", "match": re.escape(file), "do": "limit:300"}
    process = finish(words, full, code=3)
    assert NAMED.search(process.said), process.said
    assert str(tmp_path / "data") in process.said
    assert list(tmp_path.iterdir()) == []
    finish(words)
    assert differences(tiny_shards, tmp_path / "data") == []


@pytest.mark.reliability("R13")
def test_data_are_refused_before_they_are_written_where_they_will_not_fit(text_file, tiny_shards, finish, tmp_path):
    words = ["prepare", str(text_file), "--out", str(tmp_path / "data"), "--tokenizer", str(tiny_shards / "tokenizer")]
    words += ["--min-documents", "60"]
    process = finish(words, {"at": "start", "do": "free:1000"}, code=3)
    assert re.search(r"error: no space for the shards: it takes \d+ bytes.* and 1000 bytes", process.said), process.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reliability("R13")
@pytest.mark.parametrize(
    ("moment", "limit"),
    [
        ({"at": "inheritune.training.checkpoint:save_file", "match": r"step-.*model\.safetensors"}, 1000),
        ({"at": "open", "match": r"step-.*manifest\.json"}, 10),
        ({"at": "open", "match": r"\.latest\.tmp"}, 1),
    ],
    ids=["weights", "manifest", "pointer"],
)
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_its_pointer(
    moment, limit, stage, whole_stage, finish, differences, pointed_at, tmp_path
):
    folder = tmp_path / "parts"
    process = finish(stage(folder), {**moment, "count": 3, "do": f"limit:{limit}"}, code=3)
    assert NAMED.search(process.said), process.said
    before = pointed_at(folder)
    behind = 1 if "latest" in moment["match"] else 0  # the new one is there, whole, and nothing points to it yet
    assert checkpoints_of(folder)[-1 - behind] == before.name
    assert find_checkpoint(folder / "checkpoints") is not None
    finish(stage(folder))
    assert differences(whole_stage.folder, folder) == []


@pytest.mark.reliability("R13")
def test_training_does_not_begin_where_two_checkpoints_do_not_fit(stage, finish, tmp_path):
    process = finish(stage(tmp_path / "out"), {"at": "start", "do": "free:1000000"}, code=3)  # one takes about 650,000
    assert NAMED.search(process.said), process.said
    assert checkpoints_of(tmp_path / "out") == []
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.reliability("R13")
def test_a_save_is_not_begun_where_it_will_not_fit(
    stage, whole_stage, finish, differences, at_step, pointed_at, tmp_path
):
    folder = tmp_path / "parts"
    process = finish(stage(folder), at_step(40, "free:1000"), code=3)
    assert NAMED.search(process.said), process.said
    assert pointed_at(folder) == find_checkpoint(folder / "checkpoints")
    finish(stage(folder))
    assert differences(whole_stage.folder, folder) == []


@pytest.mark.reliability("R13")
def test_a_line_of_the_log_that_does_not_fit_stops_the_run_and_loses_no_other(
    stage, whole_stage, finish, differences, at_step, pointed_at, tmp_path
):
    folder = tmp_path / "parts"
    process = finish(stage(folder), at_step(40, "limit:1"), code=3)
    assert "metrics.jsonl" in process.said
    assert NAMED.search(process.said), process.said
    assert pointed_at(folder) is not None
    finish(stage(folder))
    assert differences(whole_stage.folder, folder) == []


@pytest.mark.reliability("R13")
def test_a_record_of_a_search_that_does_not_fit_stops_it_and_is_made_by_the_next_start(
    search, whole_search, finish, differences, tmp_path
):
    folder = tmp_path / "run"
    for file in ("events.jsonl", "decide-", "round-1/.result.json", "summary.json", "model/.README.md"):
        process = finish(search(folder), {"at": "open", "match": file, "do": "limit:1"}, code=3)
        assert NAMED.search(process.said), process.said
    finish(search(folder), code=5)
    assert differences(whole_search.folder, folder) == []


@pytest.mark.reliability("R13")
def test_a_report_that_does_not_fit_costs_nothing_else_and_leaves_the_old_one(
    search, whole_search, finish, differences, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole_search.folder, folder)
    before = (folder / "report.html").read_bytes()
    full = {"at": "open", "match": "report.html.tmp", "do": "limit:1000"}
    for words in (search(folder), ["report", str(folder)]):
        process = finish(words, full, code=3)
        assert "report.html" in process.said
        assert NAMED.search(process.said), process.said
        assert (folder / "report.html").read_bytes() == before
    finish(search(folder), code=5)
    assert differences(whole_search.folder, folder) == []


@pytest.mark.reliability("R13")
def test_a_file_system_that_is_full_is_survived_and_gone_on_from_when_there_is_space(
    stage, whole_stage, finish, differences, pointed_at, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1900k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        process = finish(stage(disk / "out", keep_checkpoints=5), code=3)
        assert NAMED.search(process.said), process.said
        assert pointed_at(disk / "out") == find_checkpoint(disk / "out" / "checkpoints")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(stage(disk / "out", keep_checkpoints=5))
        assert differences(whole_stage.folder, disk / "out") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
