import csv
import json

import pytest

import inheritune
from inheritune.cli import main
from inheritune.errors import EvaluationError

TEXTS = [f"The {word} of the house is {word} and nothing else, said number {index}." for index, word in
         enumerate(["door", "roof", "floor", "wall", "stair", "lamp", "chair", "window"] * 4)]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": each}) for each in TEXTS))
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory, reference_saver):
    return reference_saver("llama", tmp_path_factory.mktemp("reference"))


SMALL = {"sequences": 4, "length": 32, "documents": 12}


def test_reference_and_child_are_held_side_by_side_and_written(reference, text, tmp_path):
    inheritune.inherit(reference, tmp_path / "child", layers=2)
    found = inheritune.analyze(
        tmp_path / "child", data=text, against=reference, out=tmp_path / "run" / "analysis", **SMALL
    )
    assert [each.depth for each in found.models] == [2, 4]
    child, whole = found.models
    assert child.prefix_nats == pytest.approx(whole.prefix_nats[:3], rel=1e-6)
    assert child.attention == whole.attention[:2]
    written = json.loads((tmp_path / "run" / "analysis" / "analysis.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    assert written["against"] == str(reference)
    with (tmp_path / "run" / "analysis" / "blocks-1.csv").open() as file:
        blocks = list(csv.DictReader(file))
    assert [(int(row["first_layer"]), int(row["last_layer"])) for row in blocks] == [
        (first, last) for first in range(4) for last in range(first, 4)
    ]
    with (tmp_path / "run" / "analysis" / "prefixes-1.csv").open() as file:
        assert [float(row["loss_nats"]) for row in csv.DictReader(file)] == pytest.approx(list(whole.prefix_nats))
    table = found.table()
    assert f"{reference}: 4 layers on 12 documents" in table and "to begin with, untrained: " in table


def test_the_scores_are_a_selection(reference, text, tmp_path):
    found = inheritune.analyze(reference, data=text, out=tmp_path, attention=False, **SMALL)
    certificate = inheritune.inherit(reference, tmp_path / "child", layers=f"best-2 {tmp_path / 'scores-0.csv'}")
    costs = [each.mean for each in found.models[0].costs]
    best = sorted(sorted(range(4), key=costs.__getitem__)[-2:])
    assert list(certificate.to_json()["layers"]) == best


def test_the_same_seed_gives_the_same_stretches_and_another_one_others(reference, text):
    once, again, other = (
        inheritune.analyze(reference, data=text, depth=False, seed=seed, **SMALL).models[0] for seed in (0, 0, 1)
    )
    assert once == again and once.attention != other.attention
    assert once.loss_nats is None and once.suggestion is None and once.depth == 4


def test_shards_give_their_watch_half(reference, tiny_shards):
    watch, decide = (
        inheritune.analyze(reference, data=tiny_shards, attention=False, half=half, documents=5).models[0]
        for half in ("watch", "decide")
    )
    assert watch.documents == decide.documents == 5 and watch.loss_nats != decide.loss_nats


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 100_000}, r"the text has \d+ tokens, and a stretch has 100000.*--length"),
        ({"sequences": 0}, "mean nothing"),
        ({"energy": 1.5}, "mean nothing"),
        ({"half": "third", "data": None}, "third"),
    ],
)
def test_what_cannot_be_analysed_is_refused(settings, said, reference, text, tiny_shards):
    data = settings.pop("data", text) or tiny_shards
    with pytest.raises(inheritune.InherituneError, match=said):
        inheritune.analyze(reference, data=data, **{**SMALL, **settings})


def test_a_model_without_a_tokenizer_is_refused_by_name(build_model, text, tmp_path):
    build_model("llama").save_pretrained(tmp_path)
    with pytest.raises(inheritune.DataError, match="has no tokenizer"):
        inheritune.analyze(tmp_path, data=text, **SMALL)


def test_no_text_is_refused(reference, tmp_path):
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(EvaluationError, match="there is no text"):
        inheritune.analyze(reference, data=tmp_path / "empty.txt", **SMALL)


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", *map(str, words)])
    return ended.value.code


def test_the_verb_prints_a_table_or_json(reference, text, tmp_path, capsys):
    small = ["--sequences", 4, "--length", 32, "--documents", 4]
    assert run(reference, "--data", text, "--out", tmp_path / "out", *small) == 0
    out = capsys.readouterr().out
    assert "lazy layers" in out and f"written to {tmp_path / 'out'}" in out
    assert run(reference, "--data", text, "--json", "--no-attention", *small) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["attention"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model named"),
        (["m"], "no text named"),
        (["m", "--data", "d", "--no-attention", "--no-depth"], "leave nothing to measure"),
    ],
)
def test_the_verb_says_what_is_missing(words, said, capsys):
    assert run(*words) == 2
    assert said in capsys.readouterr().err
