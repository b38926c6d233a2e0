"""A synthetic run folder, made up for testing the layout of pages and cards: no number in it was measured."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
reference: {model: layout-test/reference, revision: null}
data: {sources: [made-up.txt], token_budget: 5M, sequence_length: 256}
growth: {mode: restart, start_depth: null, step: 2, margin: 0.01}
train: {passes: 1, peak_lr: 0.0003, schedule: wsd}
baselines: [scratch]
run_dir: runs/layout-test
seed: 0
"""


def _curve(stage: str, start: float, end: float, *, tokens: int, part: float = 1.0) -> list[dict[str, Any]]:
    """Made-up losses that fall from ``start`` towards ``end``; ``part`` of the stage is done."""
    lines: list[dict[str, Any]] = []
    steps = 600
    for step in range(1, round(steps * part) + 1):
        loss = end + (start - end) * math.exp(-6 * step / steps)
        at = {
            "stage": stage,
            "step": step,
            "tokens": tokens * step // steps,
            "elapsed_s": tokens / 70_000 * step / steps,
        }
        noise = 0.03 * math.sin(step * 1.7)
        speeds = {"lr": 3e-4, "grad_norm": 0.8, "tokens_per_s": 40_000.0 + step}
        lines.append({**at, "kind": "train", "loss_nats": loss + noise, **speeds})
        if step % 30 == 0:
            lines.append({**at, "kind": "validation", "loss_nats": loss, **dict.fromkeys(speeds)})
    return lines


def _summary(name: str, verdict: str, mean: float, half: float) -> dict[str, Any]:
    against = {
        "reference": {"mean": mean, "low": mean - half, "high": mean + half, "seeds": 1},
        "scratch": {"mean": -0.31, "low": -0.33, "high": -0.29, "seeds": 1},
    }
    first = {"mean": 0.09, "low": 0.082, "high": 0.098}
    rounds = [
        {"stage": "round-1", "depth": 4, "parameters": 1_230_000, "tokens": 5_000_000, "tokens_total": 5_000_000,
         "loss_nats": 1.95, "verdict": "not shown", "interval": first, "start_watch_loss_nats": 4.1,
         "watch_loss_nats": 1.94, "elapsed_s": 72.0},
        {"stage": "round-2", "depth": 6, "parameters": 1_660_000, "tokens": 5_000_000, "tokens_total": 10_000_000,
         "loss_nats": 1.86 + mean, "verdict": verdict, "interval": {k: against["reference"][k] for k in first},
         "start_watch_loss_nats": 3.2, "watch_loss_nats": 1.855 + mean, "elapsed_s": 72.0},
    ]  # fmt: skip
    return {
        "format": 1, "name": name, "state": "done", "verdict": verdict,
        "parity": verdict != "not shown", "margin": 0.01,
        "advice": "Try one more round with 7 layers." if verdict == "not shown" else None,
        "reference": {"path": "layout-test/reference", "depth": 8, "parameters": 2_100_000, "loss_nats": 1.86,
                      "training_tokens": 400_000_000, "watch_loss_nats": 1.855},
        "child": {"path": "model", "depth": 6, "parameters": 1_660_000, "loss_nats": 1.86 + mean, "tokens": 10_000_000,
                  "elapsed_s": 144.0, "layers": [0, 1, 2, 3, 4, 5], "start_watch_loss_nats": 3.2,
                  "watch_loss_nats": 1.855 + mean, "stage": "round-2"},
        "baselines": {"scratch": {"depth": 6, "parameters": 1_660_000, "loss_nats": 2.17, "watch_loss_nats": 2.16,
                                  "tokens": 10_000_000, "elapsed_s": 144.0, "stage": "scratch"}},
        "against": against,
        "rounds": rounds,
        "validation": {"documents": 212, "tokens": 181_000, "bytes": 640_000, "sha256": "ab" * 32,
                       "watch_documents": 208,
                       "watch_tokens": 178_000, "warnings": ["this is a layout test: no number is real"],
                       "bits_per_byte": {"reference": 0.76, "child": 0.762, "scratch": 0.885}},
        "samples": [{"prompt": "def read(path):", "reference": "\n    return open(path).read()\n" * 4,
                     "child": "\n    with open(path) as file:\n        return file.read()\n"}],
        "gap_closed": 0.99,
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(state, name, **changes)`` writes a run folder; a state is a verdict or ``stopped``."""

    def make(state: str = "parity", name: str = "layout-test", **changes: Any) -> Path:
        run = tmp_path / "runs" / name
        (run / "model").mkdir(parents=True)
        (run / "stages" / "round-1").mkdir(parents=True)
        (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        provenance = {
            "command": ["/somewhere/bin/inheritune", "run", "my recipe.yaml"],
            "started": "2026-01-01T10:00:00", "finished": None,
            "versions": {"inheritune": "0.1.0", "torch": "2.13.0", "python": "3.11"},
            "machine": {"processor": "layout-test", "cores": 2}, "seeds": {"seed": 0},
            "reference": {"path": "layout-test/reference", "revision": "0123abcd",
                          "sha256": {"model.safetensors": "cd" * 32}},
            "data": {"sha256": "ef" * 32, "tokens": 5_000_000, "documents": 4100,
                     "domains": {"code": {"tokens": 5_000_000, "documents": 4100}}},
        }  # fmt: skip
        (run / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
        metrics = _curve("round-1", 4.1, 1.94, tokens=5_000_000, part=0.4 if state == "stopped" else 1.0)
        if state != "stopped":
            metrics += _curve("round-2", 3.2, 1.86, tokens=5_000_000)
            metrics += _curve("scratch", 7.6, 2.16, tokens=10_000_000)
            mean, half = {"better": (-0.01, 0.004), "parity": (0.004, 0.005), "not shown": (0.03, 0.006)}[state]
            summary = _summary(name, state, mean, half) | changes
            (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
            tensors = {"model.norm.weight": {"from": "model.norm.weight", "op": "copy", "sha256": "00"}}
            certificate = {"format": 1, "kind": "prefix", "reference": "layout-test/reference",
                           "layers": [0, 1, 2, 3, 4, 5], "max_abs_difference": 0.0, "tensors": tensors}  # fmt: skip
            (run / "model" / "certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
            (run / "model" / "config.json").write_text("{}", encoding="utf-8")
            (run / "model" / "tokenizer.json").write_text("{}", encoding="utf-8")
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
        event = {"time": "2026-01-01T10:01:12", "stage": "round-1", "kind": "grow", "message": "grown to 6 layers"}
        (run / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
        probe = {"device": "cpu", "precision": "float32", "micro_batch": 8, "compile": False, "threads": 2}
        (run / "stages" / "round-1" / "probe.json").write_text(json.dumps(probe), encoding="utf-8")
        return run

    return make
