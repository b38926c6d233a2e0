"""The command line, with things that go wrong at chosen moments.

    python faults.py '[{"at": "rename", "match": "step-", "count": 3, "do": "signal:9"}]' run my.yaml

A fault is ``at`` (a moment, below), ``match`` (a pattern of what the moment is about), ``count`` (the how manyth of
these; 0 is every one) and ``do``.

Moments: ``fsync``, ``rename``, ``open`` (for writing) and ``mkdir`` are about a path, ``compile`` is about nothing,
``start`` is the beginning, ``MODULE:NAME`` is the call of a function, and is about its arguments. All come before the
thing itself.

Things to do: ``signal:15+15``, ``limit:BYTES`` (the largest file that can be written from now on), ``free:BYTES`` (what
the disk says is free), ``clock:SECONDS`` (the wall clock jumps), ``sleep:SECONDS``, and ``plain compiler`` (torch
traces, and compiles nothing).
"""

import importlib
import io
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Hook = Callable[[str], None]


def watch(target: str, about: Callable[..., str | None], hook: Hook) -> None:
    """Call the hook before a function, with what the call is about; None is no moment."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    honest = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        what = about(*arguments, **named)
        if what is not None:
            hook(what)
        return honest(*arguments, **named)

    setattr(owner, name, watched)


def opened_for_writing(path: Any, mode: str = "r", *_: Any, **__: Any) -> str | None:
    return str(path) if set(mode) & set("wax+") else None


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


PATHS: dict[str, tuple[list[str], Callable[..., str | None]]] = {
    "fsync": (["os:fsync"], path_of),
    "rename": (["os:rename", "os:replace"], lambda source, target, **_: str(target)),
    "open": (["io:open", "builtins:open"], opened_for_writing),
    "mkdir": (["os:mkdir"], lambda path, *_, **__: str(path)),
}


def arguments_of(*arguments: Any, **named: Any) -> str:
    """The plain ones among them: no tensors."""
    return " ".join(repr(each) for each in (*arguments, *named.values()) if is_plain(each))


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | Path)


def set_clock(seconds: float) -> None:
    """The wall clock of Python and of the run's records, not the monotonic one."""
    from inheritune import runs

    honest, real = runs.datetime, time.time

    class Jumped(honest):
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return honest.fromtimestamp(time.time(), zone)

    time.time = lambda: real() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
    runs.datetime = Jumped


def do(what: str) -> None:
    """One thing that goes wrong."""
    kind, _, value = what.partition(":")
    if kind == "signal":
        for number in value.split("+"):
            os.kill(os.getpid(), int(number))
    elif kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), resource.RLIM_INFINITY))
    elif kind == "free":
        total = 10**12
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(total, total - int(value), int(value))
    elif kind == "clock":
        set_clock(float(value))
    elif kind == "sleep":
        time.sleep(float(value))
    else:
        raise ValueError(what)


def plain_compiler(hook: Hook) -> None:
    """torch.compile with a backend that runs what was traced as it is."""
    import torch

    honest = torch.compile

    def backend(graph: Any, inputs: Any, **_options: Any) -> Any:
        hook("")
        return graph.forward

    torch.compile = lambda *arguments, **named: honest(*arguments, **{**named, "backend": backend})


def arm(fault: dict[str, Any]) -> None:
    """Wait for a fault's moment."""
    pattern, count, seen = re.compile(fault.get("match", "")), fault.get("count", 1), 0

    def hook(what: str) -> None:
        nonlocal seen
        if pattern.search(what):
            seen += 1
            if count in (0, seen):
                do(fault["do"])

    at = fault["at"]
    if fault["do"] == "plain compiler":
        plain_compiler(lambda what: None)
    elif at == "start":
        do(fault["do"])
    elif at == "compile":
        plain_compiler(hook)
    elif at in PATHS:
        targets, about = PATHS[at]
        for target in targets:
            watch(target, about, hook)
    else:
        watch(at, arguments_of if "match" in fault else lambda *_, **__: "", hook)


def main(faults: list[dict[str, Any]], words: list[str]) -> int:
    """The command with its faults; gives its exit code."""
    from inheritune.cli import main as command

    small_files = any(fault["do"].startswith("limit:") for fault in faults)
    shown = sys.stdout, sys.stderr
    if small_files:  # what is said is no file of the run, and is let through afterwards
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    for fault in faults:
        arm(fault)
    try:
        command(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        if small_files:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            for stream, held in zip(shown, (sys.stdout, sys.stderr), strict=True):
                stream.write(held.getvalue())
                stream.flush()
            sys.stdout, sys.stderr = shown
    raise AssertionError("the command line always exits")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
