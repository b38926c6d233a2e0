"""Processes that begin in no time: torch is imported once, and every process is forked from there.

One JSON object a line on stdin, one on stdout: {"faults", "words", "log", "environment"} begins a process and gives its
number; {"look": NUMBER} gives its exit code as ``subprocess`` has it, or null while it runs.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import faults

IMPORTED = [
    "inheritune.cli",
    "inheritune.job",
    "inheritune.reporting.figures",
    "matplotlib.backends.backend_svg",
    "torch._dynamo",
    *(f"transformers.models.{family}.modeling_{family}" for family in ("gpt2", "llama", "qwen3")),
]
"""What a command imports when it comes to it."""


def child(request: dict[str, Any]) -> None:
    """Be the process that was asked for; does not come back."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request["environment"])
        code = faults.main(request["faults"], request["words"])
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends us by closing stdin
    running: dict[int, int | None] = {}
    for module in IMPORTED:
        importlib.import_module(module)
    threads = len(list(Path("/proc/self/task").iterdir()))
    gc.freeze()
    print(json.dumps({"threads": threads}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "look" in request:
            number = request["look"]
            if running[number] is None:
                ended, status = os.waitpid(number, os.WNOHANG)
                running[number] = os.waitstatus_to_exitcode(status) if ended else None
            print(json.dumps(running[number]), flush=True)
        else:
            number = os.fork()
            if number == 0:
                child(request)
            running[number] = None
            print(json.dumps(number), flush=True)
    for number, code in running.items():
        if code is None:
            os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    main()
