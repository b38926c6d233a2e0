"""What tests of a stage share: a tiny start, one way to train it, and how results are compared."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inheritune.machine.stop import StopRequest
from inheritune.training.stage import train


class StopAt(StopRequest):
    """A stop that is asked for when the loop has looked ``count`` times."""

    def __init__(self, count):
        self.left = count

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


class Lab:
    """Twelve steps of eight rows of 32 tokens on the tiny shards, in float32, uncompiled; all of it can be changed."""

    LENGTH = 32
    BATCH = 8 * 32
    PLAIN = {  # noqa: RUF012  (never mutated)
        "batch_tokens": 8 * 32,
        "peak_lr": 1e-3,
        "validations": 2,
        "compile": False,
        "precision": "float32",
        "save_every_minutes": 1000.0,
    }
    StopAt = StopAt

    def __init__(self, save_reference, shards, folder):
        self.save_reference, self.shards, self.folder = save_reference, shards, folder
        self.events = []

    def start(self, family="llama", name="start", **config):
        folder = self.folder / name
        return folder if folder.exists() else self.save_reference(family, folder, **config)

    def run(self, out, *, start=None, tokens=12 * 8 * 32, recipe=None, shards=None, **settings):
        return train(
            start or self.start(),
            shards or self.shards,
            self.folder / out,
            recipe={**self.PLAIN, **(recipe or {})},
            sequence_length=self.LENGTH,
            token_budget=tokens,
            record_event=lambda kind, message: self.events.append((kind, message)),
            **settings,
        )

    def weights(self, out):
        return load_file(self.folder / out / "model" / "model.safetensors")

    def checkpoint(self, out, step, file="model.safetensors"):
        return load_file(self.folder / out / "checkpoints" / f"step-{step:08d}" / file)

    def losses(self, out):
        lines = [json.loads(line) for line in (self.folder / out / "metrics.jsonl").read_text().splitlines()]
        untimed = ("stage", "elapsed_s", "tokens_per_s", "flops_per_s", "utilisation", "memory_bytes", "energy_j")
        return [{key: value for key, value in line.items() if key not in untimed} for line in lines]

    @staticmethod
    def same(left, right):
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    def assert_equal(self, left, right, kinds=("train", "validation")):
        """Weights and every logged number are the same, bit for bit."""
        assert self.same(self.weights(left), self.weights(right))
        logs = [[line for line in self.losses(each) if line["kind"] in kinds] for each in (left, right)]
        assert logs[0] == logs[1]


@pytest.fixture
def lab(save_reference, tiny_shards, tmp_path):
    return Lab(save_reference, Path(tiny_shards), tmp_path)
