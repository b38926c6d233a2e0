import json
import subprocess
import sys

import pytest

from inheritune import runs
from inheritune.errors import RecipeError


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
