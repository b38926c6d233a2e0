"""Models and text from a hub, by the libraries' own ways, in processes of their own; the hub is on this machine."""

import json
import os
import subprocess
import sys

import pytest

RECIPE = """
reference: {model: owner/reference, revision: v1}
data:
  sources: [{hub: owner/texts, revision: main}]
  token_budget: 2k
  sequence_length: 32
  validation: {min_documents: 80}
growth: {max_depth: 2, margin: 10}
train: {batch_tokens: 256, compile: false}
run_dir: run
"""


@pytest.fixture
def stocked(hub, save_reference, text_file):
    """The hub with one model, which carries code and a pickle too, and one dataset."""
    model = save_reference("llama", hub.folder / "models" / "owner" / "reference")
    (model / "modeling_evil.py").write_text("raise SystemExit('code of a model was run')")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    dataset = hub.folder / "datasets" / "owner" / "texts"
    dataset.mkdir(parents=True)
    (dataset / "train.jsonl").write_bytes(text_file.read_bytes())
    return hub


@pytest.fixture
def command(stocked, tmp_path):
    """``command(*words, **environment)``: inheritune in a process that knows only this hub."""

    def run(*words, **environment):
        known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "inheritune", *words],
            cwd=tmp_path,
            env={**known, **stocked.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_child_of_a_hub_model_is_the_child_of_its_folder_and_no_code_is_fetched(command, stocked, tmp_path):
    fetched = command("inherit", "owner/reference", "child", "--layers", "2", "--revision", "v1")
    assert fetched.returncode == 0, fetched.stderr
    assert "snapshot c0ffee" in fetched.stdout
    assert not any(name in call for call in stocked.asked for name in (".py", ".bin"))
    local = command("inherit", str(stocked.folder / "models" / "owner" / "reference"), "local", "--layers", "2")
    assert local.returncode == 0, local.stderr
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "child" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    stocked.close()
    again = command("inherit", "owner/reference", "again", "--layers", "2", "--revision", "v1", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_the_whole_job_on_a_hub_model_and_a_hub_dataset(command, tmp_path):
    (tmp_path / "hub.yaml").write_text(RECIPE, encoding="utf-8")
    done = command("run", "hub.yaml")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())
    assert list(manifest["splits"]["train"]["domains"]) == ["owner/texts"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "base_model: owner/reference" in card
    assert "done already" in command("run", "hub.yaml").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inherit", "owner/nothing", "out"], "'owner/nothing'"),
        (["inherit", "owner/reference", "out", "--revision", "v9"], "revision v9"),
        (["prepare", "hub:owner/nothing", "--out", "out", "--tokenizer", "tokenizer"], "'owner/nothing'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_error(command, save_reference, tmp_path, words, said):
    save_reference("llama", tmp_path / "tokenizer")
    refused = command(*words)
    assert refused.returncode == 3, refused.stderr
    assert "error: " in refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_tasks_are_read_from_the_hub_by_the_verb_and_during_growth(command, stocked, tmp_path):
    rows = stocked.folder / "datasets" / "baber" / "piqa"
    rows.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = [
            {"goal": f"open {number}", "sol1": "a door", "sol2": "a wall", "label": number % 2} for number in range(12)
        ]
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = command("eval", "owner/reference", "--task", "piqa", "--limit", "8", "--json")
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)["downstream"]["scores"]["owner/reference"]
    assert (score["task"], score["items"], score["chance"]) == ("piqa", 8, 0.5)
    assert any("/datasets/baber/piqa/" in call for call in stocked.asked)
    (tmp_path / "hub.yaml").write_text(RECIPE + "tasks: {data: hub, suite: [piqa]}\n", encoding="utf-8")
    done = command("run", "hub.yaml")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "evaluation" / "downstream.json").read_text())
    assert {name: scores[0]["items"] for name, scores in found["scores"].items()} == dict.fromkeys(
        ("reference", "round-1", "scratch"), 12
    )


def test_tasks_that_the_hub_does_not_have_are_named(command):
    done = command("eval", "owner/reference", "--task", "piqa")
    assert done.returncode == 3
    assert "the data of piqa cannot be read" in done.stderr
    assert "name a folder with --data" in done.stderr
