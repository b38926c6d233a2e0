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
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from inheritune.runs import machine_facts

UNTIMED = ("stage", "kind", "step", "tokens", "loss_nats", "lr", "grad_norm")


def command(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "inheritune", "demo", "--run-dir", str(run_dir)]


def metrics(run_dir: Path) -> list[dict[str, object]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: entry[key] for key in UNTIMED if key in entry} for entry in map(json.loads, lines)]


def kill_once(run_dir: Path, generator: random.Random) -> int:
    """Start the demo, let it train a while, kill it; gives the bytes of metrics it had written."""
    path = run_dir / "metrics.jsonl"
    before = path.stat().st_size if path.exists() else 0
    process = subprocess.Popen(command(run_dir), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and (path.stat().st_size if path.exists() else 0) <= before:
        time.sleep(0.05)  # until it trains again
    deadline = time.monotonic() + generator.uniform(5, 40)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit("the demo ended before it could be killed; raise the number of tokens or lower the wait")
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
    written = [kill_once(killed, generator) for _ in range(given.kills)]
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
