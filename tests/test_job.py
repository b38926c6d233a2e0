"""What comes with the package: the demo's reference and its recipes."""

from pathlib import Path

import numpy as np

import inheritune
from inheritune import runs
from inheritune.data.tokenizer import open_tokenizer
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.recipe import Recipe
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.folder import load_model
from inheritune.surgery.transplant import inherit

RECIPES = Path(inheritune.__file__).parent / "recipes"
REFERENCE = RECIPES / "demo_reference"


def test_the_shipped_reference_is_small_whole_and_trained():
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) <= 5_000_000
    model, tokenizer = load_model(REFERENCE), open_tokenizer(REFERENCE)
    assert anatomy_of_folder(REFERENCE).depth == 8
    text = "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return file.read()\n"
    (ids,) = tokenizer.encode_batch([text])
    assert token_mean(score_documents(model, [np.array([tokenizer.end_of_text_id, *ids])], sequence_length=256)) < 4.0


def test_the_shipped_reference_says_how_it_was_made():
    record = runs.read_json(REFERENCE / "training.json")
    making = Recipe.load(RECIPES / record["recipe"])
    assert record["command"] == "inheritune demo --from-scratch"
    assert making.reference.train.passes == 8
    assert record["tokens"] == record["steps"] * making.train.batch_tokens


def test_half_of_the_shipped_reference_is_inherited_exactly(tmp_path):
    certificate = inherit(REFERENCE, tmp_path / "child")
    assert (certificate.layers, certificate.max_abs_difference) == ((0, 1, 2, 3), 0.0)
    assert not (tmp_path / "child" / "training.json").exists()


def test_demo_and_reference_are_split_alike():
    demo, making = (Recipe.load(RECIPES / name) for name in ("demo.yaml", "demo-reference.yaml"))
    assert demo.data.validation == making.data.validation
    assert demo.data.sequence_length == making.data.sequence_length
