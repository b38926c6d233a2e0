"""How fast models train: ours, a plain loop, transformers Trainer and litgpt, in turn, several rounds in one run.

    python benchmarks/throughput.py --shape llama gpt2 tiny [--rounds 3] [--steps 10] [--only NAME ...]
    python benchmarks/throughput.py --sweep llama
    python benchmarks/throughput.py --profile llama --growth llama
    python benchmarks/throughput.py --render benchmarks/results/throughput-DATE.json [--place WORD]

Every contender trains the same model on the same rows in a process of its own: the same micro-batches a step, clipping,
AdamW.
The first round compiles with an empty cache of compiled code, the others find it filled. ``Trainer`` needs accelerate;
litgpt is run where it is installed (with lightning). Writes ``benchmarks/results/throughput-DATE.json``, adding to what
an earlier call of the same commit and day has written; ``--render`` makes the tables and the figure of
``docs/performance.md`` from such a file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from commit import commit_here
from speed.shapes import SHAPES, Shape, sweep_of

HERE = Path(__file__).resolve().parent
LONGEST_S = 1800


def worker(given: argparse.Namespace) -> None:
    """One contender in this process, or the matrix products; prints JSON on the last line."""
    import torch
    from speed.contenders import CONTENDERS, prepare_text
    from speed.matrices import own_time

    from inheritune.machine.probe import best_device, matmul_peak_gflops

    shape = Shape(**json.loads(given.worker[1]))
    if given.worker[0] == "prepare":
        prepare_text(given.folder)
        result: dict[str, Any] = {}
    elif given.worker[0].startswith("depths"):
        from speed.contenders import growth_rounds

        result = growth_rounds(shape, prepare_text(given.folder), [int(each) for each in given.worker[0].split()[1:]])
    elif given.worker[0].startswith("profile"):
        from speed.profile import profile_step

        result = profile_step(shape, fast=given.worker[0] == "profile fast")
    elif given.worker[0] == "matrices":
        dtypes = {"bfloat16": torch.bfloat16}
        if not torch.cuda.is_available():  # where float32 would take minutes, and nobody trains in it
            dtypes["float32"] = torch.float32
        result = {
            name: {**own_time(shape, dtype), "peak_gflops": matmul_peak_gflops(dtype, best_device())}
            for name, dtype in dtypes.items()
        }
    else:
        result = CONTENDERS[given.worker[0]](shape, given.steps, prepare_text(given.folder))
    print(json.dumps(result))


def run(name: str, shape: Shape, steps: int, folder: Path, cache: Path) -> dict[str, Any]:
    """A contender in a process of its own; its figures, or the last line of why there are none."""
    words = [sys.executable, __file__, "--worker", name, json.dumps(asdict(shape)), "--folder", str(folder)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    process = subprocess.run(
        [*words, "--steps", str(steps)], capture_output=True, text=True, timeout=LONGEST_S, env=environment
    )
    if process.returncode:
        return {"failed": (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]}
    told: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return told


def figures(told: dict[str, Any], shape: Shape, own: dict[str, Any]) -> dict[str, Any]:
    """What a process told, as the quantities that are compared."""
    if "failed" in told:
        return told
    step_s = statistics.median(told["step_s"])
    precision = told["precision"]
    return {
        "precision": precision,
        "tokens_per_s": shape.step_tokens / step_s,
        "step_s": step_s,
        "flops_per_s": shape.step_flops() / step_s,
        "share_of_own_time": own[precision]["sum_s"] / step_s,
        "utilisation": shape.step_flops() / step_s / (own[precision]["peak_gflops"] * 1e9),
        "peak_memory_bytes": told["peak_memory_bytes"],
        "compile_s": told["first_step_s"] - step_s,
        "losses": told["losses"],
        **({"choices": told["choices"]} if "choices" in told else {}),
    }


def compare(name: str, given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """All contenders on one shape, in turn; after each what is known so far."""
    from speed.contenders import BY_NAME_ALONE, CONTENDERS, missing

    shape, rounds = SHAPES[name], []
    wanted = given.only or [each for each in CONTENDERS if each not in BY_NAME_ALONE]
    absent = {each: package for each in wanted if (package := missing(each))}
    for number in range(given.rounds):
        own = run("matrices", shape, given.steps, folder, folder / "cache")
        measured: dict[str, Any] = {}
        for each in wanted:
            if each not in absent:
                told = run(each, shape, given.steps, folder, folder / "cache" / f"{name}-{wanted.index(each)}")
                measured[each] = figures(told, shape, own)
                speed = measured[each].get("failed") or f"{measured[each]['tokens_per_s']:,.0f} tokens/s"
                print(f"{name} | round {number + 1} | {each} | {speed}", flush=True)
                yield {
                    "shape": asdict(shape),
                    "step_flops": shape.step_flops(),
                    "steps": given.steps,
                    "not_installed": absent,
                    "rounds": [*rounds, {"matrices": own, "contenders": measured}],
                }
        rounds.append({"matrices": own, "contenders": measured})


def sweep(name: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours against one size after the other, and what determinism costs."""
    found: dict[str, Any] = {}
    for size, shapes in sweep_of(SHAPES[name]).items():
        found[size] = []
        for value, shape in shapes:
            told = run("ours", shape, given.steps, folder, folder / "cache" / "sweep")
            if "failed" in told:
                raise SystemExit(f"{size} {value}: {told['failed']}")
            speed = shape.step_tokens / statistics.median(told["step_s"])
            found[size].append(
                {
                    "value": value,
                    "tokens_per_s": speed,
                    "flops_per_s": shape.step_flops() / shape.step_tokens * speed,
                    "peak_memory_bytes": told["peak_memory_bytes"],
                }
            )
            print(f"{name} | {size} {value} | {speed:,.0f} tokens/s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=[])
    parser.add_argument("--sweep", choices=SHAPES)
    parser.add_argument("--growth", nargs="+", choices=SHAPES, default=[], help="compile times of rounds of growth")
    parser.add_argument("--profile", nargs="+", choices=SHAPES, default=[])
    parser.add_argument("--render", type=Path)
    parser.add_argument("--place", metavar="WORD", help="with --render: marks of the page that begin with this word")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some contenders by name")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/throughput-DATE.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given)
        return
    if given.render:
        from speed.render import render

        render(given.render, HERE.parent / "docs", given.place)
        return
    if not (given.shape or given.sweep or given.profile or given.growth):
        parser.error("name a --shape, a --sweep, a --profile, a --growth or a file to --render")
    from speed.contenders import NEEDS

    from inheritune.runs import machine_facts

    commit = commit_here()
    date = datetime.now(UTC).date().isoformat()
    path = given.out or HERE / "results" / f"throughput-{date}.json"
    result: dict[str, Any] = {"commit": commit, "date": date, **machine_facts(), "shapes": {}, "sweeps": {}}
    result["versions"] |= {each: version(each) for needed in NEEDS.values() for each in needed if find_spec(each)}
    if path.exists() and (before := json.loads(path.read_text()))["commit"] == commit:
        result = before
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if failed := run("prepare", SHAPES["tiny"], 1, folder, folder / "cache").get("failed"):
            raise SystemExit(failed)
        for each in given.shape:
            for so_far in compare(each, given, folder):
                result["shapes"][each] = {"commit": commit, **so_far}
                path.write_text(json.dumps(result, indent=1) + "\n")
        for each in given.growth:
            depth, cache = SHAPES[each].depth, folder / "cache" / "growth"
            rounds = [run(f"depths {depth // 2} {depth}", SHAPES[each], 1, folder, cache)]
            rounds.append(run(f"depths {depth + 2}", SHAPES[each], 1, folder, cache))
            result.setdefault("growth", {})[each] = rounds
            result.setdefault("commits_of", {})["growth"] = commit
            print(json.dumps(rounds, indent=1))
            path.write_text(json.dumps(result, indent=1) + "\n")
        for each in given.profile:
            ways = ("profile plain", "profile fast")
            profiles = [run(way, SHAPES[each], 1, folder, folder / "cache" / "profile") for way in ways]
            result.setdefault("profiles", {})[each] = profiles
            result.setdefault("commits_of", {})["profiles"] = commit
            print(json.dumps(profiles, indent=1))
            path.write_text(json.dumps(result, indent=1) + "\n")
        if given.sweep:
            result["sweeps"][given.sweep] = sweep(given.sweep, given, folder)
            result.setdefault("commits_of", {})["sweeps"] = commit
            path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
