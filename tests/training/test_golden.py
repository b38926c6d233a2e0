"""Losses of 100 steps, kept in golden.json: a change that moves a number shows here first.

The file is written anew by (say in the commit why the numbers moved):

    INHERITUNE_WRITE_GOLDEN=1 pytest tests/training/test_golden.py
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch
import transformers

from inheritune.training.stage import train

FILE = Path(__file__).with_name("golden.json")
LENGTH, BATCH, STEPS = 32, 4, 100
RECIPE = {"batch_tokens": BATCH * LENGTH, "peak_lr": 1e-3, "validations": 2, "compile": False, "precision": "float32"}
FAMILIES = ["llama", "gpt2", "qwen3"]


def machine():
    """All that decides the last bit of a sum."""
    names = [platform.processor() or platform.machine()]
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        names = [f"{name} {fields[name]}" for name in ("model name", "cpu family", "model") if name in fields]
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": ", ".join([*names, torch.backends.cpu.get_cpu_capability()]),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.reliability("R7")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_steps_lose_what_they_lost_before(family, save_reference, tiny_shards, tmp_path, one_thread):
    train(
        save_reference(family, tmp_path / "start"), tiny_shards, tmp_path / "out",
        recipe=RECIPE, sequence_length=LENGTH, token_budget=STEPS * BATCH * LENGTH,
    )  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = {
        kind: [entry["loss_nats"] for entry in entries if entry["kind"] == kind] for kind in ("train", "validation")
    }
    assert len(losses["train"]) == STEPS
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("INHERITUNE_WRITE_GOLDEN"):
        same = golden.get("machine") == machine()  # losses of another machine are not mixed in
        kept = golden["losses"] if same else {}
        FILE.write_text(json.dumps({"machine": machine(), "losses": {**kept, family: losses}}, indent=1) + "\n")
        return
    tolerance = 0 if machine() == golden["machine"] else 1e-4  # nats
    for kind, expected in golden["losses"][family].items():
        assert losses[kind] == pytest.approx(expected, rel=0, abs=tolerance), kind
