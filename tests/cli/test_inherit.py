"""The verb inherit as a user meets it."""

import json
from typing import get_args, get_type_hints

import pytest

from inheritune import cli
from inheritune.cli.inherit import inherit as verb
from inheritune.surgery import recheck
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.parts import Parts


def run(*words):
    """Exit code of one command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--layers", "-1"], [3]),
        (["--layers=-2--1"], [2, 3]),
        (["--layers", "-4--3"], [0, 1]),
        (["--layers", "0-1,-1"], [0, 1, 3]),
        (["--layers", "drop -1"], [0, 1, 2]),
        (["--layers", "every-2"], [0, 2]),
        (["--layers", "best-1 scores.csv"], [2]),
        ([], [0, 1]),
    ],
    ids=str,
)
def test_a_selection_on_the_command_line_keeps_what_it_says(words, kept, save_reference, here, capsys):
    save_reference("llama", here / "reference")
    (here / "scores.csv").write_text("layer,score\n0,1\n1,2\n2,9\n3,4\n")
    for order in (["reference", "child", *words], [*words, "reference", "child"]):
        assert run("inherit", *order, "--dry-run", "--json") == 0
        assert [row["reference"] for row in json.loads(capsys.readouterr().out)["layers"]] == kept


def test_a_child_is_shown_with_its_layers_its_proof_and_its_size(save_reference, here, capsys):
    save_reference("llama", here / "reference", with_tokenizer=False)
    capsys.readouterr()
    assert run("inherit", "reference", "child", "--layers", "3", "--max-shard-size", "30kB") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[:4] == [
        "child: 3 layers of reference",
        "layer of the child  layer of the reference",
        "0-2                 0-2",
        "certificate: prefix, largest difference 0.0",
    ]
    assert "tensors: 30 copied" in shown.out
    assert "note: the reference has no tokenizer files" in shown.out
    assert shown.err == ""
    assert len(list((here / "child").glob("*.safetensors"))) > 1


def test_parts_and_seed_reach_the_child(save_reference, here, capsys):
    save_reference("llama", here / "reference")
    capsys.readouterr()
    assert run("inherit", "reference", "child", "--parts", "mlp+norms", "--seed", "5", "--json") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    certificate = json.loads(shown.out)
    assert certificate == Certificate.load(here / "child").to_json()
    assert certificate["tensors"]["model.layers.0.self_attn.q_proj.weight"]["op"] == "init"
    assert any("seed 5" in note for note in certificate["notes"])


def test_moved_layers_that_compute_something_else_are_a_warning_on_stderr(save_reference, here, capsys):
    save_reference("gpt2", here / "reference", scale_attn_by_inverse_layer_idx=True)
    capsys.readouterr()
    for extra in ([], ["--dry-run"], ["--json"]):
        assert run("inherit", "reference", "child", "--layers", "drop 0", *extra) == 0
        shown = capsys.readouterr()
        assert shown.err.startswith("warning: moved layers do not compute what they did: ")
        assert "warning: moved" not in shown.out


def test_a_dry_run_writes_nothing_and_needs_no_folder_for_the_child(save_reference, here, capsys):
    save_reference("gemma2", here / "reference")
    assert run("inherit", "reference", "--dry-run", "--layers", "0,2-3") == 0
    shown = capsys.readouterr().out
    assert "0                   0\n1-2                 2-3" in shown
    assert "layers      4 -> 3" in shown
    assert "config      num_hidden_layers: 4 -> 3" in shown
    assert "certificate bytes: the selection is no prefix" in shown
    assert shown.endswith("dry run: nothing was written\n")
    assert [path.name for path in here.iterdir()] == ["reference"]


def test_without_the_proof_the_certificate_says_so(save_reference, here, capsys):
    save_reference("llama", here / "reference")
    assert run("inherit", "reference", "child", "--no-verify") == 0
    shown = capsys.readouterr().out
    assert "certificate: bytes" in shown
    assert "note: not verified" in shown


def test_an_existing_child_is_checked_again_and_a_changed_one_found(save_reference, here, capsys):
    save_reference("llama", here / "reference")
    assert run("inherit", "reference", "child") == 0
    assert run("inherit", "--verify", "child", "reference") == 0
    assert "checked again: everything is as the certificate says" in capsys.readouterr().out
    content = bytearray((here / "child" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (here / "child" / "model.safetensors").write_bytes(content)
    assert run("inherit", "child", "reference", "--verify") == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_the_check_is_given_child_reference_and_revision_in_this_order(here, monkeypatch, capsys):
    given = []
    Certificate("prefix", "owner/model", (0,), 0.0, {}).save(here)
    monkeypatch.setattr(recheck, "recheck", lambda *words: given.append(words) or Certificate.load(here))
    assert run("inherit", "--verify", here, "owner/model", "--revision", "v1") == 0
    assert given == [(here, "owner/model", "v1")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reference", "new", "--verify"], "leave --verify out to make one. reference is no child"),
        (["reference", "child", "--verify"], "The child comes first: inheritune inherit --verify child reference."),
        (["child", "--verify"], "No reference is named"),
        (["child", "reference", "--verify", "--layers", "3"], "--layers cannot go with it"),
        (["child", "reference", "--verify", "--no-verify"], "--no-verify cannot go with it"),
        (["reference"], "no folder for the child. Write: inheritune inherit REFERENCE CHILD"),
        (["reference", "new", "--layers", "drop", "20-27"], "--layers 'drop': 'drop' is followed by"),
        (["reference", "new", "--layers", "best-2", "scores.csv"], "in one pair of quotes: 'best-2 scores.csv'"),
        (["--layers", "drop", "2-3", "reference", "new"], "in one pair of quotes: 'drop 2-5'"),
        (["reference", "new", "other"], "two folders are named here, and then 'other'"),
        (["reference", "new", "--layers", "most"], "--layers 'most'"),
        (["reference", "new", "--layers", "--dry-run"], "--layers '--dry-run'"),
        (["reference", "new", "--parts", "heads"], '"attention+norms"'),
        (["reference", "new", "--max-shard-size", "2 lots"], "--max-shard-size: '2 lots' is not a size"),
        (["reference", "new", "--max-shard-size", "0"], "--max-shard-size: 0 is not positive"),
    ],
    ids=str,
)
def test_wrong_usage_is_told_before_anything_is_read(words, said, here, capsys):
    (here / "reference").mkdir()
    (here / "child").mkdir()
    Certificate("prefix", "reference", (0,), 0.0, {}).save(here / "child")
    assert run("inherit", *words) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["child", "reference"]


def test_the_command_line_offers_the_parts_that_there_are():
    assert get_args(get_type_hints(verb)["parts"]) == get_args(Parts)
