import errno
import json
import shutil
import subprocess
import sys

import pytest

from inheritune import runs
from inheritune.errors import DiskError, RecipeError


def test_a_file_is_old_or_new_and_never_half(tmp_path, monkeypatch):
    path = tmp_path / "pointer"
    runs.write_text(path, "old")

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.write_text(path, "new and longer")
    assert path.read_text() == "old"


def test_numbers_that_are_no_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(tmp_path / "summary.json", {"loss": float("nan")})
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), runs.new_folder(tmp_path / "model") as new:
        (new / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with runs.new_folder(tmp_path / "model") as new:
        (new / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_replaced_folder_survives_a_kill_between_the_two_renames(tmp_path):
    target = tmp_path / "model"
    with runs.new_folder(target) as new:
        (new / "first").write_text("x")
    target.rename(tmp_path / ".model.old")  # as a kill leaves it: the former one aside, the new one not there yet
    (tmp_path / ".model.tmp").mkdir()
    with pytest.raises(RuntimeError), runs.new_folder(target):
        raise RuntimeError
    assert (target / "first").exists()


def test_a_folder_is_held_by_one_process_and_let_go(tmp_path):
    with runs.locked(tmp_path), pytest.raises(RecipeError, match="another process"), runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path):
        pass


def test_linked_files_are_the_same_files(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "weights").write_text("w")
    runs.link_folder(tmp_path / "stage", tmp_path / "model")
    assert (tmp_path / "stage" / "weights").samefile(tmp_path / "model" / "weights")


def test_events_are_kept_in_words_with_their_time(tmp_path):
    assert not runs.has_event(tmp_path, "round-1", "decided", "parity")
    runs.record_event(tmp_path, "round-1", "decided", "parity")
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["stage"], event["kind"], event["message"]) == ("round-1", "decided", "parity")
    assert runs.has_event(tmp_path, "round-1", "decided", "parity")
    assert not runs.has_event(tmp_path, None, "decided", "parity")


def test_the_machine_is_described_without_asking_anyone():
    facts = runs.machine_facts()
    assert {"python", "torch", "transformers", "inheritune"} <= set(facts["versions"])
    assert facts["machine"]["cores"] >= 1


def test_two_processes_that_make_one_folder_do_not_take_each_others_half(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from inheritune import runs\n"
        "with runs.new_folder(Path(sys.argv[1])) as new:\n"
        "    (new / 'theirs').touch(); print('begun', flush=True); sys.stdin.read()\n"
    )
    target = tmp_path / "made"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "begun\n"
    with runs.new_folder(target) as new:
        (new / "ours").touch()
    assert [path.name for path in target.iterdir()] == ["ours"]
    other.communicate("", timeout=30)
    assert other.returncode == 0
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_process_left_of_a_new_folder_is_swept_away(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".made.{ended.pid}.tmp").mkdir()
    with runs.new_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    for name in ("one", "two"):
        (tmp_path / "gone" / name).mkdir(parents=True)
    monkeypatch.setattr(runs.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.remove_folder(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    monkeypatch.undo()
    runs.remove_folder(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_write_without_space_names_the_file_the_bytes_and_what_is_safe(number, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    runs.write_text(path, "old")

    def full(descriptor):
        raise OSError(number, "full")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(
        DiskError, match=r"summary\.json.* needs 12345 bytes \(12\.3 kB\).* are free.*checkpoint"
    ) as info:
        runs.write_text(path, "x" * 12345)
    assert info.value.exit_code == 3
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]  # the half-written one gives its space back


def test_an_error_that_is_not_about_space_stays_what_it_is(tmp_path):
    with pytest.raises(IsADirectoryError):
        runs.write_text(tmp_path, "x")
    with pytest.raises(PermissionError), runs.writing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "not yours")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("4096 requested and 100 written"),  # numpy
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
    ids=["system", "numpy", "safetensors"],
)
def test_a_folder_without_space_names_what_was_written_when_it_was_full(error, tmp_path):
    with (
        pytest.raises(DiskError, match=r"model \(weights in it\): No space.*more than 70 bytes"),
        runs.new_folder(tmp_path / "model") as new,
    ):
        (new / "weights").write_bytes(b"x" * 70)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_known_size_says_what_it_needs_whichever_file_did_not_fit(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    with (
        pytest.raises(DiskError, match=r"step-1 \(manifest.json in it\): No space.* needs 5000 bytes"),
        runs.new_folder(tmp_path / "step-1", 5000) as new,
    ):
        monkeypatch.setattr(runs.os, "fsync", full)
        runs.write_text(new / "manifest.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_what_will_not_fit_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 9_001, 999))
    runs.require_space(tmp_path / "not" / "yet", 999, "two checkpoints")
    with pytest.raises(DiskError, match=r"no space for two checkpoints: it takes 1000 bytes .* and 999 bytes are free"):
        runs.require_space(tmp_path / "not" / "yet", 1000, "two checkpoints")
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    runs.require_space(tmp_path, 10**15, "all there is")  # a file system that does not tell its size


def test_a_line_that_a_kill_has_torn_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / "events.jsonl"
    runs.append_line(path, "first")
    with path.open("a") as file:
        file.write('{"torn')
    runs.append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def test_a_line_without_space_leaves_the_lines_before_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    runs.append_line(path, "first")

    def nearly_full(file, content):
        file.write(content[:3])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(runs, "write_all", nearly_full)
    with pytest.raises(DiskError, match=r"events\.jsonl.* needs 7 bytes"):
        runs.append_line(path, "second")
    assert path.read_text() == "first\n"
