"""One public name for the loss on text and for scores on tasks."""

import json
import weakref

import pytest

import inheritune
from inheritune.errors import RecipeError
from inheritune.evaluation.compare import Evaluation
from inheritune.evaluation.scores import Downstream


@pytest.fixture(scope="module")
def model(tmp_path_factory, reference_saver):
    return reference_saver("llama", tmp_path_factory.mktemp("model"))


def test_text_gives_a_loss_and_a_suite_gives_scores(model, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"a text of number {number}"}) + "\n" for number in range(5)))
    loss = inheritune.evaluate(model, data=text, sequence_length=16)
    assert isinstance(loss, Evaluation)
    assert loss.sequence_length == 16
    rows = tmp_path / "rows" / "piqa.jsonl"
    rows.parent.mkdir()
    row = {"goal": "open", "sol1": "a door", "sol2": "a wall", "label": 0}
    rows.write_text("".join(json.dumps({**row, "label": number % 2}) + "\n" for number in range(6)))
    scores = inheritune.evaluate(model, suite=["piqa"], data=rows.parent, limit=4)
    assert isinstance(scores, Downstream)
    assert scores.scores[str(model)][0].items == 4


def test_nothing_to_score_on_is_said(model):
    with pytest.raises(RecipeError, match=r"give data .* or suite"):
        inheritune.evaluate(model)


def test_models_are_loaded_one_after_the_other(model, tmp_path, monkeypatch, reference_saver):
    from inheritune.evaluation import compare

    alive, most, honest = set(), [], compare.load_model

    def loading(folder):
        network = honest(folder)
        weakref.finalize(network, alive.discard, str(folder))
        alive.add(str(folder))
        most.append(len(alive))
        return network

    monkeypatch.setattr(compare, "load_model", loading)
    text = tmp_path / "text.txt"
    text.write_text("a text that is read")
    other = reference_saver("gpt2", tmp_path / "other")
    inheritune.evaluate(model, data=text, against=other)
    assert most == [1, 1]
