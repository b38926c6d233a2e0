"""Growth curves of the modes on one reference, at equal tokens, over seeds.

    python benchmarks/growth_modes.py OUT [--seeds 0 1 2] [--tokens 200k]

The demo's reference and text; children of 2, 4 and 6 of its 8 layers, one after the other, each trained on the same
tokens, whatever the verdict. A seed chooses the training documents and their order; reference and validation documents
are the same for all. Prints one JSON object and writes ``OUT/growth-modes.svg``.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import inheritune
from inheritune import Recipe, grow
from inheritune.data.standard_library import write_standard_library
from inheritune.machine.allocator import keep_freed_memory
from inheritune.reporting.figures import Curve, loss_figure
from inheritune.runs import machine_facts

RECIPES = Path(inheritune.__file__).parent / "recipes"
MODES = ("restart", "continue", "identity")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Two-sided 95 % point of Student's t for the mean of so many values."""


def run_of(out: Path, text: Path, mode: str, seed: int, tokens: str) -> dict[str, Any]:
    """One search; its rounds, and its watch losses against the tokens that the search has cost."""
    folder = out / f"{mode}-{seed}"
    asked = {
        "data.sources": [str(text)],
        "data.token-budget": tokens,
        "reference.model": str(RECIPES / "demo_reference"),
        "run-dir": str(folder),
        "growth.mode": mode,
        "growth.start-depth": 2,
        "growth.step": 2,
        "growth.max-depth": 6,
        "growth.target": 0.1,  # out of reach: every mode goes through all rounds
        "train.validations": 4,
        "baselines": [],
        "seed": seed,
    }
    summary = grow(Recipe.load(RECIPES / "demo.yaml", asked)).summary
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve, offset = [], 0
    for part in summary["rounds"]:
        looks = [line for line in lines if line["stage"] == part["stage"] and line["kind"] == "validation"]
        curve += [(offset + line["tokens"], line["loss_nats"]) for line in looks]
        offset = part["tokens_total"]
    return {
        "reference_loss_nats": summary["reference"]["loss_nats"],
        "rounds": [
            {
                key: part[key]
                for key in ("depth", "tokens_total", "loss_nats", "minus_reference", "bump_nats", "elapsed_s")
            }
            for part in summary["rounds"]
        ],
        "curve": curve,
    }


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean of a few seeds with its 95 % interval (Student's t)."""
    mean = statistics.mean(values)
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", default="200k")
    given = parser.parse_args()
    keep_freed_memory()
    out = given.out.absolute()
    text = out / "text.jsonl"
    if not text.exists():
        write_standard_library(text)
    runs = {mode: {seed: run_of(out, text, mode, seed, given.tokens) for seed in given.seeds} for mode in MODES}
    per_round = {
        mode: [
            {
                "depth": runs[mode][given.seeds[0]]["rounds"][index]["depth"],
                "minus_reference": over_seeds(
                    [run["rounds"][index]["minus_reference"]["mean"] for run in runs[mode].values()]
                ),
                "bump_nats": over_seeds([run["rounds"][index]["bump_nats"] for run in runs[mode].values()])
                if index
                else None,
            }
            for index in range(3)
        ]
        for mode in MODES
    }
    minus_restart = {
        mode: [
            over_seeds(
                [
                    runs[mode][seed]["rounds"][index]["loss_nats"] - runs["restart"][seed]["rounds"][index]["loss_nats"]
                    for seed in given.seeds
                ]
            )
            for index in range(3)
        ]
        for mode in MODES[1:]
    }
    curves = [
        Curve(
            mode if seed == given.seeds[0] else "",
            f"run-{number}",
            tuple(tokens for tokens, _ in runs[mode][seed]["curve"]),
            tuple(loss for _, loss in runs[mode][seed]["curve"]),
            dash=number,
        )
        for number, mode in enumerate(MODES)
        for seed in given.seeds
    ]
    figure = loss_figure(curves, name="growth-modes", axis="tokens", description="Watch loss against the tokens spent")
    (out / "growth-modes.svg").write_text(figure, encoding="utf-8")
    print(
        json.dumps({"per_round": per_round, "minus_restart": minus_restart, "runs": runs, **machine_facts()}, indent=2)
    )


if __name__ == "__main__":
    main()
