"""An inheritance that is killed, has no room, or loses its reference leaves a whole child or none (R1, R13, R16)."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from inheritune.errors import SurgeryError
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.folder import check_files, load_model
from inheritune.surgery.tensor_file import sha256
from inheritune.surgery.transplant import inherit

WEIGHTS = "model.safetensors"

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "head_dim": 64}
"""Large enough (21 MB) that writing, reading back and running take their share of the time."""


@pytest.fixture(scope="module")
def reference(reference_saver, tmp_path_factory):
    return reference_saver("llama", tmp_path_factory.mktemp("wide") / "reference", **WIDE)


@pytest.fixture(scope="module")
def whole_child(reference, finish, tmp_path_factory):
    """An undisturbed child: ``folder``, and the ``seconds`` that it took."""
    folder = tmp_path_factory.mktemp("whole") / "child"
    words = ["inherit", str(reference), str(folder), "--layers", "6"]
    finish(words)
    shutil.rmtree(folder)
    begin = time.monotonic()
    finish(words)
    return SimpleNamespace(folder=folder, seconds=time.monotonic() - begin)


def passes(child: Path) -> bool:
    """Whether every tensor has the bytes that the certificate promises, and the model loads."""
    certificate = Certificate.load(child)
    tensors = check_files(child).tensors
    load_model(child)
    return {name: sha256(entry) for name, entry in tensors.items()} == {
        name: origin.sha256 for name, origin in certificate.tensors.items()
    }


def phase(place: Path) -> str:
    """How far it had come, from what it has left."""
    for folder in place.glob(".child.*.tmp"):
        files = {path.name for path in folder.iterdir()}
        return "proving" if "tokenizer.json" in files else "writing" if WEIGHTS in files else "begun"
    return "a whole child in its place" if (place / "child").exists() else "not begun"


@pytest.mark.reliability("R1")
def test_an_inheritance_killed_at_random_moments_leaves_a_whole_child_or_none(
    reference, whole_child, start, finish, tmp_path, full
):
    generator, moments, phases = random.Random(2), 60 if full else 6, Counter()
    for number in range(moments):
        place = tmp_path / str(number)
        place.mkdir()
        words = ["inherit", str(reference), str(place / "child"), "--layers", "6"]
        if number % 4 < 2:  # a former child is in its place
            shutil.copytree(whole_child.folder, place / "child")
        process = start(words)
        if number % 2:  # any time at all
            wait_s = (number + generator.random()) / moments * whole_child.seconds
        else:  # from the first file on
            wait_s = generator.uniform(0.0, 0.3) * whole_child.seconds
            while process.look() is None and not list(place.glob(".child.*.tmp")):
                time.sleep(0.002)
        code = process.wait(wait_s, required=False)
        if code is None:
            process.signal(signal.SIGKILL)
            code = process.wait()
        assert code in (-signal.SIGKILL, 0), process.said
        phases[phase(place)] += 1
        assert not (place / "child").exists() or passes(place / "child")
        finish(words)
        assert [path.name for path in place.iterdir()] == ["child"]
        for file in (WEIGHTS, "config.json", "certificate.json"):
            assert (place / "child" / file).read_bytes() == (whole_child.folder / file).read_bytes()
        shutil.rmtree(place)
    print(f"{moments} kills: {dict(phases)}")
    if full:
        assert phases["begun"] + phases["writing"] + phases["proving"] >= 1


@pytest.mark.reliability("R13")
@pytest.mark.parametrize("limit", [1, 300, 20_000, 5_000_000])
def test_a_child_that_does_not_fit_leaves_nothing_behind(limit, reference, whole_child, finish, tmp_path):
    words = ["inherit", str(reference), str(tmp_path / "child"), "--layers", "6"]
    process = finish(words, {"at": "mkdir", "match": r"\.child\.", "do": f"limit:{limit}"}, code=3)
    said = process.said.strip().split("\n")[-1]
    assert said.startswith("error: cannot write") and "free" in said, process.said
    assert list(tmp_path.iterdir()) == []
    finish(words)
    assert (tmp_path / "child" / WEIGHTS).read_bytes() == (whole_child.folder / WEIGHTS).read_bytes()


def mounted(folder: Path, options: str) -> None:
    """A small file system of its own, or no test."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.mark.reliability("R13")
@pytest.mark.parametrize(("options", "said"), [("size=1m", "Free some space"), ("ro", "cannot be written to")])
def test_a_file_system_that_takes_no_child_is_named_before_a_byte_is_written(
    options, said, reference, finish, tmp_path
):
    mounted(tmp_path / "disk", options)
    try:
        process = finish(["inherit", str(reference), str(tmp_path / "disk" / "child"), "--layers", "6"], code=3)
        assert said in process.said and str(tmp_path / "disk") in process.said
        assert process.said.count("\n") == 1 and list((tmp_path / "disk").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_place_where_nobody_can_write_is_refused_with_a_code_of_ours(reference, finish, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("/proc/child", "/dev/null/child", str(tmp_path / "file" / "child")):
        process = finish(["inherit", str(reference), out, "--layers", "6"], code=3)
        assert process.said.startswith("error: ") and process.said.count("\n") == 1, process.said


def test_a_child_on_another_file_system_is_the_same(reference, whole_child, finish, tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("there is no other file system here")
    place = memory / f"inheritune-{os.getpid()}"
    place.mkdir()
    try:
        finish(["inherit", str(reference), str(place / "child"), "--layers", "6"])
        assert [path.name for path in place.iterdir()] == ["child"]
        for file in (WEIGHTS, "config.json", "certificate.json"):
            assert (place / "child" / file).read_bytes() == (whole_child.folder / file).read_bytes()
    finally:
        shutil.rmtree(place)


CHANGES = {
    "removed": lambda folder: shutil.rmtree(folder),
    "weights removed": lambda folder: (folder / WEIGHTS).unlink(),
    "truncated": lambda folder: os.truncate(folder / WEIGHTS, 3000),
    "emptied": lambda folder: os.truncate(folder / WEIGHTS, 0),
    "replaced": lambda folder: (folder / "other").replace(folder / WEIGHTS),
    "written over": lambda folder: (folder / WEIGHTS).write_bytes((folder / "other").read_bytes()),
}


@pytest.mark.reliability("R16")
@pytest.mark.parametrize("layers", [2, [0, 2]], ids=["prefix", "bytes"])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_reference_that_changes_while_it_is_cut_gives_no_child(change, layers, save_reference, tmp_path, monkeypatch):
    folder = save_reference("llama", tmp_path / "reference")
    other = bytearray((folder / WEIGHTS).read_bytes())
    other[-4000:] = bytes(4000)
    (folder / "other").write_bytes(other)
    honest = os.mkdir

    def make(path, *arguments, **settings):
        honest(path, *arguments, **settings)
        if Path(path).name.startswith(".child."):  # everything is decided, and nothing is written yet
            CHANGES[change](folder)

    monkeypatch.setattr(os, "mkdir", make)
    with pytest.raises(SurgeryError, match=str(folder)):
        inherit(folder, tmp_path / "child", layers=layers)
    assert {path.name for path in tmp_path.iterdir()} <= {"reference"}
