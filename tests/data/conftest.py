"""Tiny texts and a tokenizer made from them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from inheritune.data.tokenizer import train_tokenizer

SENTENCE = "the layer keeps what it learned and deeper ones repeat it — naïve Ωmega 漢字 🙂 until loss matches again"


def make_texts(count: int, seed: int = 0, words: int = 40) -> list[str]:
    """Different random texts, with characters of one to four bytes."""
    draw = random.Random(seed)
    return [f"{index} " + " ".join(draw.choices(SENTENCE.split(), k=draw.randint(3, words))) for index in range(count)]


def write_lines(path: Path, texts: list[str]) -> Path:
    """JSON lines with one text each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def texts() -> Callable[..., list[str]]:
    """``texts(count, seed=0, words=40)``."""
    return make_texts


@pytest.fixture
def lines() -> Callable[[Path, list[str]], Path]:
    """``lines(path, texts)`` writes JSON lines."""
    return write_lines


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small byte-level BPE."""
    return train_tokenizer(make_texts(200), 400, tmp_path_factory.mktemp("tokenizer"))
