"""What comes with the package: the demo's reference and its recipes."""

from pathlib import Path

import numpy as np

import inheritune
from inheritune import job, runs
from inheritune.data.tokenizer import open_tokenizer
from inheritune.evaluation.statistics import token_mean
from inheritune.evaluation.token_loss import score_documents
from inheritune.recipe import Recipe
from inheritune.surgery.anatomy import anatomy_of_folder
from inheritune.surgery.folder import load_model
from inheritune.surgery.transplant import inherit
from inheritune.training.sinks import Silent

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


MAKING = """
reference:
  train:
    config:
      {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 4,
       vocab_size: 300, max_position_embeddings: 64}
    passes: 2
data: {sources: [DEMO_TEXT], token_budget: 3k, sequence_length: 32, validation: {min_documents: 80}}
train: {batch_tokens: 256, peak_lr: 2e-3, validations: 2, compile: false}
"""

DEMO = """
reference: {model: DEMO_REFERENCE}
data: {sources: [DEMO_TEXT], token_budget: 2k, sequence_length: 32, validation: {min_documents: 80}}
growth: {start_depth: 1, max_depth: 2, step: 1}
train: {batch_tokens: 256, validations: 2, compile: false}
"""


def test_the_demo_makes_its_reference_from_scratch_and_goes_on_to_the_end(text_file, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo-reference.yaml").write_text(MAKING)  # the verb's whole way, with little to train
    (tmp_path / "recipes" / "demo.yaml").write_text(DEMO)
    (tmp_path / "small-text.jsonl").write_bytes(text_file.read_bytes())
    monkeypatch.setattr(job, "RECIPES", tmp_path / "recipes")
    result = job.demo(tmp_path / "small", from_scratch=True, progress=Silent())
    reference = tmp_path / "small-reference" / "stages" / "reference" / "model"
    assert anatomy_of_folder(reference).depth == 3
    assert result.summary["reference"]["path"] == str(reference)
    tokens = runs.read_json(tmp_path / "small-reference" / "stages" / "reference" / "result.json")["tokens"]
    assert result.summary["reference"]["training_tokens"] == tokens > 5000
    assert result.summary["rounds"][0]["depth"] == 1
    assert result.report.exists()
    data = [runs.read_json(tmp_path / name / "data" / "manifest.json") for name in ("small", "small-reference")]
    assert data[0]["validation_text"] == data[1]["validation_text"]  # the reference saw no validation document
    again = job.demo(tmp_path / "small", from_scratch=True, progress=Silent())
    assert again.summary == result.summary


def test_demo_and_reference_are_split_alike():
    demo, making = (Recipe.load(RECIPES / name) for name in ("demo.yaml", "demo-reference.yaml"))
    assert demo.data.validation == making.data.validation
    assert demo.data.sequence_length == making.data.sequence_length
