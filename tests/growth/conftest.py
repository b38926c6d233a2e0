"""A recipe on a tiny reference and the tiny texts; keys can be changed."""

import json

import pytest

from inheritune.recipe import Recipe
from inheritune.training.sinks import Silent

LENGTH = 32


class StopAfter(Silent):
    """Asks for a stop when so many steps have been shown."""

    def __init__(self, steps, stop):
        self.left, self.stop = steps, stop
        stop.requested = steps == 0

    def show(self, status):
        self.left -= 1
        self.stop.requested = self.left <= 0


class Lines(Silent):
    """Keeps what the user would read."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.fixture
def stop_after():
    """``stop_after(steps, stop)``: a progress that asks for a stop when so many steps have been shown."""
    return StopAfter


@pytest.fixture
def lines():
    """A progress that keeps what the user would read, in ``lines.said``."""
    return Lines()


@pytest.fixture
def recipe(save_reference, text_file, tmp_path):
    """``recipe(part__key=value, ...) -> Recipe``; a reference of four layers (``family``), 2000 tokens a round."""

    def build(family="llama", **changes):
        reference = tmp_path / ("reference" if family == "llama" else f"reference-{family}")
        if not reference.exists():
            save_reference(family, reference)
        values = {
            "reference": {"model": str(reference)},
            "data": {
                "sources": [str(text_file)],
                "token_budget": 2000,
                "sequence_length": LENGTH,
                "validation": {"min_documents": 80},
            },
            "train": {
                "batch_tokens": 8 * LENGTH,
                "peak_lr": 1e-3,
                "validations": 2,
                "compile": False,
                "precision": "float32",
            },
            "run_dir": str(tmp_path / "run"),
        }
        for key, value in changes.items():
            part, _, name = key.partition("__")
            values = {**values, part: {**values.get(part, {}), name: value} if name else value}
        return Recipe.model_validate(values)

    return build


@pytest.fixture
def read():
    """``read(path)``: the value in a JSON file."""
    return lambda path: json.loads(path.read_text(encoding="utf-8"))
