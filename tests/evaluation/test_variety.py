import json

import pytest

from inheritune.cli import main
from inheritune.evaluation.generation import write
from inheritune.evaluation.variety import PROMPTS, probe, repetition


def test_repetition_is_the_share_of_sequences_that_came_before():
    assert repetition("a b c d e f g h") == 0
    assert repetition("a b c d " * 2) == pytest.approx(1 / 5)  # 5 sequences of four, one of them again
    assert repetition("no " * 104) == pytest.approx(100 / 101)
    assert repetition("too short a") == 0
    assert repetition("a b a b a b", n=2) == pytest.approx(3 / 5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, reference_saver):
    folder = tmp_path_factory.mktemp("pair")
    return reference_saver("llama", folder / "one"), reference_saver("gpt2", folder / "two")


def test_every_model_continues_the_same_prompts_in_both_ways(pair):
    found = probe(pair, max_new_tokens=6, seed=3)
    assert list(found.models) == [str(each) for each in pair]
    for model, ways in found.models.items():
        assert list(ways["greedy"].texts) == write(model, PROMPTS, max_new_tokens=6)
        assert list(ways["sampled"].texts) == write(model, PROMPTS, max_new_tokens=6, seed=3, temperature=0.8)
    assert found == probe(pair, max_new_tokens=6, seed=3)
    table = found.table()
    assert all(f"prompt: {prompt}" in table for prompt in PROMPTS)


def test_the_verb_prints_the_probe(pair, capsys):
    words = ["eval", str(pair[0]), "--against", str(pair[1]), "--probe", "--max-new-tokens", "3"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert "distinct-2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--prompt", "my own", "--json"])
    assert json.loads(capsys.readouterr().out)["probe"]["prompts"] == ["my own"]


def test_the_probe_is_kept_where_the_report_looks(pair, tmp_path, capsys):
    out = tmp_path / "run" / "evaluation"
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(pair[0]), "--probe", "--max-new-tokens", "3", "--prompt", "my own", "--out", str(out)])
    assert ended.value.code == 0
    assert f"written to {out / 'probe.json'}" in capsys.readouterr().out
    assert json.loads((out / "probe.json").read_text())["prompts"] == ["my own"]
