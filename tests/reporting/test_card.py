import json

import pytest
from huggingface_hub import ModelCard

from inheritune.errors import RecipeError
from inheritune.reporting.card import write_card


def _set_reference(run, **values):
    path = run / "provenance.json"
    provenance = json.loads(path.read_text(encoding="utf-8"))
    provenance["reference"] |= values
    path.write_text(json.dumps(provenance), encoding="utf-8")


def test_the_card_has_its_fields_and_what_a_user_needs(make_run):
    run = make_run("parity")
    card = ModelCard.load(write_card(run / "model", run))
    assert card.data.base_model == "layout-test/reference"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["inheritune", "pruned"]
    for text in (
        "inherited layers (from 0) | 0-5",
        "+0.0040 nats per token (95 % interval -0.0010 to +0.0090, 1 seed)",
        "token_budget: 5M",
        "base model",
        "not a chat model",
        "AutoModelForCausalLM.from_pretrained",
        "2404.08634",
        "ef" * 32,
        "10,000,000",
    ):
        assert text in card.text


@pytest.mark.parametrize("reference", [{"revision": None}, {"path": "/home/somebody/llama", "revision": "main"}])
def test_a_reference_that_is_a_folder_is_named_in_the_text_but_is_no_base_model(make_run, reference):
    run = make_run("parity")
    _set_reference(run, **reference)
    card = ModelCard.load(write_card(run / "model", run))
    assert card.data.base_model is None
    name = reference.get("path", "layout-test/reference").rpartition("/")[2]
    assert f"from the reference `{name}`, a local folder" in card.text


def test_a_card_without_tokenizer_says_so(make_run):
    run = make_run("parity")
    (run / "model" / "tokenizer.json").unlink()
    assert "no tokenizer in this folder" in write_card(run / "model", run).read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_card(make_run):
    run = make_run("not shown")
    assert write_card(run / "model", run).read_bytes() == write_card(run / "model", run).read_bytes()


def test_a_folder_without_a_model_gets_no_card(make_run, tmp_path):
    with pytest.raises(RecipeError, match="no model folder"):
        write_card(tmp_path, make_run("parity"))
    assert not (tmp_path / "README.md").exists()


def test_text_of_the_run_cannot_break_the_table(make_run):
    run = make_run("parity")
    _set_reference(run, sha256="a|b\n<script>")
    assert "a\\|b &lt;script>" in write_card(run / "model", run).read_text(encoding="utf-8")


def test_a_reference_read_from_the_hub_cache_is_named_by_its_id_and_revision(make_run):
    run = make_run("parity")
    _set_reference(run, path="/cache/models--layout-test--reference/snapshots/89ab", revision=None)
    card = ModelCard.load(write_card(run / "model", run))
    assert card.data.base_model == "layout-test/reference"
    assert "89ab" in card.text and "/cache" not in card.text
