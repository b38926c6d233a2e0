"""Whole processes that are disturbed, and what an undisturbed one leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inheritune.training.checkpoint import verifies

HERE = Path(__file__).parent
LENGTH = 32
STEPS = 60
"""Of a stage, in three passes."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
UNTIMED = ("stage", "kind", "step", "tokens", "pass", "row", "loss_nats", "lr", "grad_norm")
"""What a line of the metrics holds beside times."""

TIMED = {"elapsed_s", "peak_memory_bytes", "name"}
"""What of a summary may differ between equal runs."""

Fault = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """A command line at work."""

    number: int
    look: Callable[[], int | None]
    """Its exit code, or None while it runs; minus the signal's number where that ended it."""
    log: Path

    def wait(self, seconds: float = 120.0, *, required: bool = True) -> int | None:
        """Its exit code, or None where it still runs after so long and need not have ended."""
        deadline = time.monotonic() + seconds
        while (code := self.look()) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if code is None and required:
            self.signal(signal.SIGKILL)
            pytest.fail(f"still at work after {seconds} s:\n{self.said}")
        return code

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.number, number)

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""


Start = Callable[..., Process]


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Any], Any]]:
    """Asks the process that others are forked from."""
    log = tmp_path_factory.mktemp("nursery") / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
    assert process.stdin is not None and process.stdout is not None
    first = process.stdout.readline()
    assert first, log.read_text()
    assert json.loads(first)["threads"] == 1, "a process with threads is no place to fork from"

    def ask(request: Any) -> Any:
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture(scope="session")
def start(nursery: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """``start(words, *faults, apart=False, environment={}, log=None)``: begin ``inheritune WORDS`` with faults.

    Forked from a process that has imported everything, or, ``apart``, as a user starts it.
    """

    def begin(
        words: Sequence[str],
        *faults: Fault,
        apart: bool = False,
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> Process:
        environment, log = environment or {}, log or tmp_path_factory.mktemp("log") / "log"
        if not apart:
            request = {"faults": faults, "words": words, "log": str(log), "environment": environment}
            number = nursery(request)
            return Process(number, lambda: nursery({"look": number}), log)
        line = [str(HERE / "faults.py"), json.dumps(faults), *words] if faults else ["-m", "inheritune", *words]
        with log.open("ab") as file:
            own = subprocess.Popen(
                [sys.executable, *line],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **ENVIRONMENT, **environment},
            )
        return Process(own.pid, own.poll, log)

    return begin


@pytest.fixture(scope="session")
def finish(start: Start, full: bool) -> Callable[..., Process]:
    """``finish(words, *faults, code=0, ...)``: run it to its end, which must be this one."""

    def run(words: Sequence[str], *faults: Fault, code: int = 0, **settings: Any) -> Process:
        process = start(words, *faults, **settings)
        ended = process.wait(1200.0 if full else 120.0)
        assert ended == code, f"exit code {ended}, and {code} was expected:\n{process.said}"
        return process

    return run


@pytest.fixture(scope="session")
def search(text_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """``search(run_dir, family="llama", **config)``: begins a tiny search, two rounds of 21 steps and the baseline.

    Its target is never met, so that it ends with exit code 5.
    """
    folder = tmp_path_factory.mktemp("search")
    save_reference = request.getfixturevalue("reference_saver")

    def words(run_dir: Path, family: str = "llama", *more: str, **config: Any) -> list[str]:
        recipe = folder / f"{family}.yaml"
        if not recipe.exists():
            save_reference(family, folder / family, **config)
            values = {
                "reference": {"model": str(folder / family)},
                "data": {
                    "sources": [str(text_file)],
                    "token_budget": 7 * 8 * LENGTH,
                    "sequence_length": LENGTH,
                    "validation": {"min_documents": 80},
                },
                "growth": {"start_depth": 2, "max_depth": 3, "step": 1, "target": 0.1},
                "train": {
                    "passes": 3,
                    "batch_tokens": 8 * LENGTH,
                    "peak_lr": 1e-3,
                    "validations": 4,
                    "compile": False,
                    "precision": "float32",
                    "save_every_minutes": 0.0003,
                },
                "run_dir": "set/by/the/command",
            }
            recipe.write_text(json.dumps(values), encoding="utf-8")
        return ["run", str(recipe), "--run-dir", str(run_dir), *more]

    return words


@pytest.fixture(scope="session")
def whole_search(search: Any, finish: Any, full: bool, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An undisturbed search: ``folder``, and the ``seconds`` that it took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    words, begin = search(folder), time.monotonic()
    finish(words, code=5, apart=full)
    return SimpleNamespace(folder=folder, seconds=time.monotonic() - begin)


@pytest.fixture(scope="session")
def stage(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """``stage(out, **changes)``: the words that begin a tiny training of 60 steps in three passes."""
    begin = request.getfixturevalue("reference_saver")("llama", tmp_path_factory.mktemp("stage") / "start")

    def words(out: Path, **changes: Any) -> list[str]:
        settings = {
            "passes": 3,
            "token_budget": STEPS // 3 * 8 * LENGTH,
            "sequence_length": LENGTH,
            "batch_tokens": 8 * LENGTH,
            "peak_lr": 1e-3,
            "validations": 4,
            "compile": "false",
            "precision": "float32",
            "save_every_minutes": 0.0005,
            **changes,
        }
        given = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return ["train", str(begin), str(tiny_shards), str(out), *given]

    return words


@pytest.fixture(scope="session")
def whole_stage(stage: Any, finish: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An undisturbed training: ``folder``, and the ``seconds`` that it took."""
    folder, begin = tmp_path_factory.mktemp("whole") / "stage", time.monotonic()
    finish(stage(folder))
    return SimpleNamespace(folder=folder, seconds=time.monotonic() - begin)


def untimed(value: Any) -> Any:
    """A JSON value without what may differ between equal runs."""
    if isinstance(value, dict):
        return {key: untimed(part) for key, part in value.items() if key not in TIMED}
    return [untimed(part) for part in value] if isinstance(value, list) else value


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line still being written is left out."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """``metrics(folder)``: what the metrics say, without times and the name that a stage has from its folder."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = lines_of(folder / "metrics.jsonl")
        return [{key: line[key] for key in UNTIMED if line.get(key, folder.name) != folder.name} for line in lines]

    return read


@pytest.fixture(scope="session")
def differences(metrics: Any) -> Callable[[Path, Path], list[str]]:
    """``differences(one, other)``: names of what is not bitwise equal in two folders of runs or stages.

    Weights, scores and tokens are compared by their bytes, metrics and summaries without their times. What else there
    is tells of times and must be there. What was begun and not ended must not.
    """

    def files(folder: Path) -> dict[str, Path]:
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def compare(one: Path, other: Path) -> list[str]:
        left, right = files(one), files(other)
        found = [f"{name} is in one of them only" for name in sorted(set(left) ^ set(right))]
        for name in sorted(set(left) & set(right)):
            kind = Path(name)
            if kind.name == "metrics.jsonl":
                equal = metrics(left[name].parent) == metrics(right[name].parent)
            elif kind.name in ("summary.json", "result.json"):
                values = [json.loads(path.read_text(encoding="utf-8")) for path in (left[name], right[name])]
                equal = untimed(values[0]) == untimed(values[1])
            elif kind.suffix in (".safetensors", ".npy", ".bin", ".idx", ".zst"):
                equal = left[name].read_bytes() == right[name].read_bytes()
            else:
                equal = True
            if not equal:
                found.append(f"{name} differs")
        return found

    return compare


@pytest.fixture(scope="session")
def pointed_at() -> Callable[[Path], Path | None]:
    """``pointed_at(stage)``: the checkpoint that the pointer names, which must be whole; None where there is none."""

    def look(folder: Path) -> Path | None:
        pointer = folder / "checkpoints" / "latest"
        if not pointer.exists():
            return None
        checkpoint = pointer.parent / pointer.read_text(encoding="utf-8").strip()
        assert verifies(checkpoint), f"the pointer names {checkpoint.name}, which is not whole"
        return checkpoint

    return look


@pytest.fixture(scope="session")
def at_step() -> Callable[..., Fault]:
    """``at_step(number, do)``: the fault that comes when this step is made and its line is about to be written."""
    return lambda number, do: {
        "at": "inheritune.training.sinks:MetricsLog.write",
        "match": rf"'train' {{'step': {number},",
        "do": do,
    }
