"""Kill the demo with SIGKILL at random moments, start it again until it is done, compare it with an undisturbed run.

    python benchmarks/killed_demo.py OUT [--kills 3] [--undisturbed RUN] [--seed 0]

Prints one JSON object; exit code 1 where a weight, a loss or a score differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from inheritune.runs import machine_facts

WAITS = 0.05, 0.25
"""Bounds of the random time before a kill, as parts of what the undisturbed run took: three kills fit in."""

UNTIMED = ("stage", "kind", "step", "tokens", "loss_nats", "lr", "grad_norm")


def command(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "inheritune", "demo", "--run-dir", str(run_dir)]


def metrics(run_dir: Path) -> list[dict[str, object]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: entry[key] for key in UNTIMED if key in entry} for entry in map(json.loads, lines)]


def duration(run_dir: Path) -> float:
    """Seconds that a finished run took."""
    told = json.loads((run_dir / "provenance.json").read_text())
    begin, end = (datetime.fromisoformat(told[name]) for name in ("started", "finished"))
    return (end - begin).total_seconds()


def kill_once(run_dir: Path, generator: random.Random, whole_s: float) -> int:
    """Start the demo, let it train for a part of what the whole takes, kill it; gives the bytes of metrics it had
    written."""
    path = run_dir / "metrics.jsonl"
    before = path.stat().st_size if path.exists() else 0
    process = subprocess.Popen(command(run_dir), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and (path.stat().st_size if path.exists() else 0) <= before:
        time.sleep(0.05)  # until it trains again
    deadline = time.monotonic() + generator.uniform(*WAITS) * whole_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit("the demo ended before it could be killed; lower WAITS")
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--undisturbed", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    whole = given.undisturbed or given.out / "whole"
    subprocess.run(command(whole), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    killed, generator = given.out / "killed", random.Random(given.seed)
    written = [kill_once(killed, generator, duration(whole)) for _ in range(given.kills)]
    subprocess.run(command(killed), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    left, right = (load_file(each / "model" / "model.safetensors") for each in (whole, killed))
    scores = sorted(path.relative_to(whole) for path in whole.glob("stages/*/validation/*.npy"))
    result = {
        "kills_at_metrics_bytes": written,
        "weights_equal": left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left),
        "losses_equal": metrics(whole) == metrics(killed),
        "scores_equal": all(np.array_equal(np.load(whole / each), np.load(killed / each)) for each in scores),
        **machine_facts(),
    }
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["weights_equal"] and result["losses_equal"] and result["scores_equal"] else 1)


if __name__ == "__main__":
    main()
