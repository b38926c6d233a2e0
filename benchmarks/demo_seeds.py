"""The demo's recipe under several seeds: what of its figures is chance.

    python benchmarks/demo_seeds.py OUT [--seeds 1 2 3]

A seed chooses the training documents, their order, the scratch baseline's start and the bootstrap; reference and
validation documents are the same for all, since the reference must not have seen them. Prints one JSON object.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import inheritune
from inheritune import Recipe, grow
from inheritune.data.standard_library import write_standard_library
from inheritune.machine.allocator import keep_freed_memory
from inheritune.runs import machine_facts

RECIPES = Path(inheritune.__file__).parent / "recipes"


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "child_minus_reference": summary["against"]["reference"],
        "child_minus_scratch": summary["against"]["scratch"],
        "gap_closed": summary["gap_closed"],
        "verdict": summary["verdict"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    keep_freed_memory()
    text = given.out.absolute() / "text.jsonl"
    if not text.exists():
        write_standard_library(text)
    runs = {}
    for seed in given.seeds:
        asked = {
            "data.sources": [str(text)],
            "reference.model": str(RECIPES / "demo_reference"),
            "run-dir": str(given.out / f"seed-{seed}"),
            "seed": seed,
        }
        runs[seed] = figures(grow(Recipe.load(RECIPES / "demo.yaml", asked)).summary)
    spread = {}
    for name in ("child_minus_reference", "child_minus_scratch"):
        means = [run[name]["mean"] for run in runs.values()]
        spread[name] = {"mean": statistics.mean(means), "least": min(means), "most": max(means)}
    closed = [run["gap_closed"] for run in runs.values()]
    spread["gap_closed"] = {"mean": statistics.mean(closed), "least": min(closed), "most": max(closed)}
    print(json.dumps({"seeds": runs, "over_seeds": spread, **machine_facts()}, indent=2))


if __name__ == "__main__":
    main()
