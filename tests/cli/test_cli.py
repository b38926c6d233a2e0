"""The command line as a user meets it: what it prints, and the codes it ends with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inheritune import cli
from inheritune.cli.overrides import parse_overrides
from inheritune.errors import RecipeError
from inheritune.recipe import Recipe


def run(*words):
    """Exit code of one command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


def test_init_writes_a_recipe_that_loads_once_it_is_filled_in(tmp_path, capsys):
    assert run("init", tmp_path / "my.yaml") == 0
    recipe = Recipe.load(tmp_path / "my.yaml", {"reference.model": "some/model", "data.sources": "[text]"})
    assert recipe.run_dir == "runs/my"
    assert "inheritune run" in capsys.readouterr().out


def test_a_recipe_that_nobody_filled_in_is_refused_and_nothing_is_fetched(tmp_path, capsys):
    run("init", tmp_path / "my.yaml")
    assert run("run", tmp_path / "my.yaml") == 2
    shown = capsys.readouterr().err
    for key, word in {"reference.model": "model: PATH_OR_HUB_ID", "data.sources": "sources: [PATH_TO_TEXT]"}.items():
        lines = (tmp_path / "my.yaml").read_text().splitlines()
        (number,) = [index for index, line in enumerate(lines, start=1) if line.strip() == word]
        assert f"my.yaml:{number}: {key} is still to be filled in" in shown


def test_init_leaves_an_existing_file_alone(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("mine")
    assert run("init", tmp_path / "my.yaml") == 2
    assert (tmp_path / "my.yaml").read_text() == "mine"
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], 'Did you mean "run"'),
        (["rnu"], "Try `inheritune --help`"),
        (["run"], "Try `inheritune run --help`"),
        (["run"], "RECIPE"),
        (["run", "missing.yaml"], "cannot read the recipe missing.yaml"),
        (["eval"], "no model named"),
        (["eval", "somewhere"], "nothing to do"),
        (["prepare", "text", "--out", "x", "--tokenizer", "y", "--token-budget", "many"], "--token-budget"),
        (["train", "a", "b", "c", "--peak-lrr", "1"], "Nearest is peak-lr"),
        (["train", "a", "b", "c", "--peak-lr", "-1"], "peak-lr: "),
        (["train", "a", "b", "c", "--passes", "null"], "passes: "),
        (["inherit", "a", "b", "--layers", "1,x"], "--layers '1,x'"),
        (["run", "a.yaml", "--seed", "1", "--seed", "2"], "given twice"),
        (["report"], "no run folder named"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "words",
    [
        ["inherit", "./nowhere", "out"],
        ["prepare", "nowhere.txt", "--out", "x", "--tokenizer", "y"],
        ["eval", "./nowhere", "--data", "text.txt"],
    ],
)
def test_something_missing_is_one_message_and_exit_code_3(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text")
    assert run(*words) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(capsys):
    assert run("--debug", "inherit", "./nowhere", "out") == 3
    assert "Traceback" in capsys.readouterr().err


def test_every_problem_of_a_recipe_is_named_at_once_with_file_and_line(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("reference: {modle: x}\ndata:\n  sources: [a]\n  token_budget: banana\n")
    assert run("run", tmp_path / "bad.yaml", "--train.peak-lrr", "1") == 2
    shown = capsys.readouterr().err
    assert "bad.yaml:1: reference.modle: there is no such key. Nearest is reference.model." in shown
    assert "bad.yaml:4: data.token_budget" in shown
    assert "--train.peak-lrr: there is no such key. Nearest is --train.peak-lr." in shown


def test_recipe_keys_are_read_with_a_space_or_an_equals_sign():
    assert parse_overrides(("--train.peak-lr", "2e-4", "--seed=3")) == {"train.peak-lr": "2e-4", "seed": "3"}


@pytest.mark.parametrize("words", [("peak-lr", "1"), ("--seed",), ("--seed", "--margin", "1")])
def test_a_word_that_is_no_key_or_has_no_value_is_refused(words):
    with pytest.raises(RecipeError, match=r"--train\.peak-lr 2e-4"):
        parse_overrides(words)


def test_inherit_then_prepare_then_train_then_eval_then_see_it_write(
    save_reference, text_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_reference("llama", tmp_path / "reference")
    assert run("inherit", "reference", "child", "--layers", "2") == 0
    assert "certificate: prefix, largest difference 0.0" in capsys.readouterr().out
    made = ["--out", "shards", "--tokenizer", "reference", "--min-documents", "60", "--token-budget", "4k"]
    assert run("prepare", text_file, *made) == 0
    assert "train" in capsys.readouterr().out
    sizes = ["--sequence-length", "32", "--batch-tokens", "256", "--peak-lr", "1e-3"]
    assert run("train", "child", "shards", "stage", *sizes) == 0
    assert "watch loss" in capsys.readouterr().out
    assert run("train", "child", "shards", "untaught", *sizes, "--distill-weight", "0.5") == 2
    assert "there is no teacher" in capsys.readouterr().err
    taught = ("--distill-weight", "0.5", "--teacher", "reference", "--average-half-life", "500")
    assert run("train", "child", "shards", "taught", *sizes, *taught) == 0
    assert "average of the weights, watch loss" in capsys.readouterr().out
    assert run("eval", "stage/model", "child", "--data", "shards", "--against", "reference") == 0
    shown = capsys.readouterr().out
    assert "stage/model minus reference:" in shown
    assert "nats per token (95 %, paired over documents)" in shown
    assert run("eval", "stage/model", "--prompt", "the layer", "--max-new-tokens", "4") == 0
    assert "the layer" in capsys.readouterr().out


RECIPE = """
reference: {{model: {reference}}}
data: {{sources: [{text}], sequence_length: 32, validation: {{min_documents: 60}}}}
train: {{batch_tokens: 64, passes: 40, compile: false, validations: 2}}
run_dir: {run_dir}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_4_and_the_same_command_goes_on(number, save_reference, text_file, tmp_path):
    save_reference("llama", tmp_path / "reference")
    path, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(RECIPE.format(reference=tmp_path / "reference", text=text_file, run_dir=run_dir))
    command = [sys.executable, "-m", "inheritune", "run", str(path)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        metrics = run_dir / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and '"train"' in metrics.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=60) == 4, (tmp_path / "log").read_text()
    assert list((run_dir / "stages" / "round-1" / "checkpoints").glob("step-*"))
    assert "Run the same command to go on" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    ended = subprocess.run([*command, "--train.peak-lr", "1"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "train.peak_lr: 0.0003 -> 1.0" in ended.stderr


@pytest.mark.parametrize(("words", "code", "said"), [
    (["run", "my.yaml"], 4, "run the same command to go on"),
    (["report", "runs/my"], 130, "nothing was saved"),
])  # fmt: skip
def test_ctrl_c_promises_to_go_on_only_where_there_is_something_to_go_on_with(words, code, said, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_app", lambda: interrupted)
    assert run(*words) == code
    assert said in capsys.readouterr().err


def test_eval_of_a_file_of_prompts_from_the_command_line(save_reference, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_reference("llama", tmp_path / "reference")
    rows = [
        {"query": f"the layer {number}", "choices": ["falls", "grows slowly"], "gold": number % 2}
        for number in range(6)
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("eval", "reference", "--task", "mine.jsonl", "--out", "scores", "--verify", "3") == 0
    out = capsys.readouterr().out
    assert "mine" in out
    assert "prompts are those of mine.jsonl" in out
    assert "6 continuations of 3 items by both engines" in out
    assert json.loads(Path("scores/downstream.json").read_text())["suite"] == "mine.jsonl"
    assert run("eval", "reference", "--suite", "paper", "--task", "mine.jsonl") == 2
    assert "--suite names tasks already" in capsys.readouterr().err
    assert run("eval", "reference", "--suite", "sgnal") == 2
    assert "there is no suite 'sgnal'" in capsys.readouterr().err
