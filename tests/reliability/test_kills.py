"""Killed anywhere and started again by the same command, a run ends as an undisturbed one (R1, R3, R14, R20)."""

import random
import shutil
import signal
import time

import pytest

from inheritune.training.checkpoint import find_checkpoint, verifies

KILL = f"signal:{signal.SIGKILL}"
TERM = f"signal:{signal.SIGTERM}"

MOMENTS = {
    "the data's first file is opened": {"at": "open", "match": r"\.data\.\d+\.tmp/unordered"},
    "the data are complete and not in place": {"at": "rename", "match": "/data$"},
    "the reference's scores are written": {"at": "open", "match": r"stages/reference/validation/\.decide-"},
    "the first child is complete and not in place": {"at": "rename", "match": "round-1/start$"},
    "a checkpoint's moments are synced": {"at": "fsync", "match": r"round-1/.*step-.*optimizer"},
    "a checkpoint is complete and not in place": {"at": "rename", "match": r"round-1/.*/step-\d+$", "count": 2},
    "a pointer moves": {"at": "rename", "match": "round-1/checkpoints/latest$", "count": 2},
    "a trained model is complete and not in place": {"at": "rename", "match": "round-1/model$"},
    "a stage is marked as finished": {"at": "rename", "match": "round-1/result.json$"},
    "a child's scores are written": {"at": "open", "match": r"stages/round-1/validation/\.decide-"},
    "the baseline's start is complete and not in place": {"at": "rename", "match": "scratch/start$"},
    "the final child is complete and not in place": {"at": "rename", "match": "parts/model$"},
    "the summary is written": {"at": "rename", "match": "summary.json$"},
    "the card is written": {"at": "open", "match": "README.md"},
    "the report is written": {"at": "rename", "match": "report.html$"},
}
"""In the order of a search."""


@pytest.mark.reliability("R1")
def test_a_search_killed_at_random_times_ends_as_if_it_had_not_been(
    search, whole_search, start, finish, differences, tmp_path, full
):
    generator, killed, folders = random.Random(0), 0, 1
    while killed < (20 if full else 3):
        words = search(tmp_path / str(folders))
        process = start(words, apart=full)
        code = process.wait(generator.uniform(0.1, 0.6) * whole_search.seconds, required=False)
        if code is None:
            process.signal(signal.SIGKILL)
            code = process.wait()
        if code == -signal.SIGKILL:
            killed += 1
        else:  # it came to its end between two kills
            assert code == 5, process.said
            folders += 1
    finish(search(tmp_path / str(folders)), code=5)
    for number in range(1, folders + 1):
        assert differences(whole_search.folder, tmp_path / str(number)) == []


@pytest.mark.reliability("R1")
def test_a_search_killed_in_the_middle_of_everything_it_writes_ends_as_if_it_had_not_been(
    search, whole_search, finish, differences, tmp_path
):
    words = search(tmp_path / "parts")
    for moment in MOMENTS.values():
        finish(words, {**moment, "do": KILL}, code=-signal.SIGKILL)
    finish(words, code=5)
    assert differences(whole_search.folder, tmp_path / "parts") == []


STOPPED = 55
"""The step of a training of 60 at which checkpoints are compared."""


@pytest.mark.reliability("R1")
def test_a_training_killed_at_random_times_has_the_same_moments_losses_and_weights(
    stage, whole_stage, start, finish, differences, at_step, tmp_path, full
):
    generator, killed, folders, stop = random.Random(1), 0, 1, at_step(STOPPED, TERM)
    while killed < (20 if full else 3):
        kept = tmp_path / str(folders) / "checkpoints"
        if kept.exists() and ends_at(find_checkpoint(kept), STOPPED):  # killed between the save of its stop and its end
            folders += 1
        process = start(stage(tmp_path / str(folders)), stop)
        code = process.wait(generator.uniform(0.1, 0.6) * whole_stage.seconds, required=False)
        if code is None:
            process.signal(signal.SIGKILL)
            code = process.wait()
        if code == -signal.SIGKILL:
            killed += 1
        else:  # it came to its stop between two kills
            assert code == 4, process.said
            folders += 1
    kept = tmp_path / str(folders) / "checkpoints"
    if not (kept.exists() and ends_at(find_checkpoint(kept), STOPPED)):  # a kill may have come just after the save
        finish(stage(tmp_path / str(folders)), stop, code=4)
    finish(stage(tmp_path / "whole"), stop, code=4)
    for number in range(1, folders + 1):
        whole, parts = (find_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", str(number)))
        assert ends_at(whole, STOPPED)
        assert ends_at(parts, STOPPED)
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
        finish(stage(tmp_path / str(number)))
        assert differences(whole_stage.folder, tmp_path / str(number)) == []


def ends_at(checkpoint, step):
    return checkpoint is not None and checkpoint.name == f"step-{step:08d}"


@pytest.mark.reliability("R3")
@pytest.mark.parametrize("steps", [(20, 41), (7, 7, 59)], ids=str)
def test_resumed_again_and_again_it_is_the_same(steps, stage, whole_stage, finish, differences, at_step, tmp_path):
    words, reached = stage(tmp_path / "parts"), 0
    for step in steps:
        if step == reached:  # stopped again before a step is made
            finish(words, {"at": "inheritune.training.sinks:MetricsLog", "do": TERM}, code=4)
        else:
            finish(words, at_step(step, TERM), code=4)
        assert ends_at(find_checkpoint(tmp_path / "parts" / "checkpoints"), step)
        reached = step
    finish(words)
    assert differences(whole_stage.folder, tmp_path / "parts") == []


@pytest.mark.reliability("R20")
def test_a_preparation_of_data_killed_anywhere_and_run_again_gives_the_same_shards(
    text_file, tiny_shards, start, finish, differences, tmp_path, full
):
    def words(name):
        return [
            *("prepare", str(text_file), "--out", str(tmp_path / name), "--tokenizer", str(tiny_shards / "tokenizer")),
            *("--min-documents", "60"),
        ]

    files = ("unordered.tmp", "train-00000.bin", "decide-00000.idx", "validation.jsonl.zst", "manifest.json")
    moments = [{"at": "open", "match": file} for file in files]
    moments += [{"at": "inheritune.data.tokenizer:TextTokenizer.encode_batch"}]
    moments += [{"at": "inheritune.data.encoding:Encoded.add", "count": count} for count in (1, 60)]
    moments += [{"at": "rename", "match": "parts$"}]
    for moment in moments:
        finish(words("parts"), {**moment, "do": KILL}, code=-signal.SIGKILL)
    begin = time.monotonic()
    finish(words("parts"))
    generator, seconds = random.Random(2), time.monotonic() - begin
    for _ in range(20 if full else 3):
        process = start(words("random"))
        if process.wait(generator.uniform(0, seconds), required=False) is None:
            process.signal(signal.SIGKILL)
            process.wait()
        else:  # it was quicker than the kill
            assert process.look() == 0
            assert differences(tiny_shards, tmp_path / "random") == []
            shutil.rmtree(tmp_path / "random")
    finish(words("random"))
    for name in ("parts", "random"):
        assert differences(tiny_shards, tmp_path / name) == []
        assert (tmp_path / name / "manifest.json").read_bytes() == (tiny_shards / "manifest.json").read_bytes()


@pytest.mark.reliability("R14")
def test_a_save_slower_than_its_interval_never_overlaps_with_another(
    stage, whole_stage, start, differences, pointed_at, tmp_path
):
    folder = tmp_path / "slow"
    slow = {"at": "fsync", "match": "step-", "count": 0, "do": "sleep:0.02"}
    process = start(stage(folder, save_every_minutes=0.001), slow)  # 60 ms, and a save takes 100 and more
    checkpoints, seen = folder / "checkpoints", set()
    while process.look() is None:
        assert len(list(checkpoints.glob(".step-*"))) <= 1
        name = read(checkpoints / "latest")
        whole = name is not None and verifies(checkpoints / name)
        if name == read(checkpoints / "latest") and name is not None:  # it did not move on while we looked
            assert whole or (folder / "result.json").exists(), name  # at the end they are all deleted
            seen.add(name)
        time.sleep(0.005)
    assert process.look() == 0, process.said
    assert len(seen) >= 3
    assert differences(whole_stage.folder, folder) == []


def read(path):
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


@pytest.mark.reliability("R14")
def test_killed_before_a_save_is_durable_the_pointer_names_the_one_before(
    stage, whole_stage, finish, differences, pointed_at, tmp_path
):
    words = stage(tmp_path / "parts")
    finish(
        words, {"at": "rename", "match": "latest$", "do": KILL}, code=-signal.SIGKILL
    )  # the first, before it is there
    assert pointed_at(tmp_path / "parts") is None
    for moment in (
        {"at": "fsync", "match": r"step-.*\.tmp/model"},
        {"at": "fsync", "match": r"step-.*\.tmp/\.manifest"},
        {"at": "fsync", "match": r"step-.*\.tmp$"},
        {"at": "rename", "match": r"step-\d+$"},
        {"at": "rename", "match": "latest$"},
    ):
        finish(words, {**moment, "count": 2, "do": KILL}, code=-signal.SIGKILL)
        before = pointed_at(tmp_path / "parts")
        newest = find_checkpoint(tmp_path / "parts" / "checkpoints")
        assert before is not None and newest.name >= before.name
    finish(words)
    assert differences(whole_stage.folder, tmp_path / "parts") == []
