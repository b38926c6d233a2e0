"""What the README shows works: its Python block is run as it stands, and every command line in it is understood."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inheritune.cli import build_app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("&&")[-1], comments=True)[1:]
    for line in README.splitlines()
    if re.match(r"    (pip install .*&& )?inheritune ", line)
]

RECIPE = """
reference: {model: path/to/reference}
data: {sources: [texts/], token_budget: 3k, sequence_length: 64}
growth: {max_depth: 2}
train: {batch_tokens: 512}
"""


def test_the_python_block_runs_as_one_script(save_reference, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    save_reference("llama", tmp_path / "path" / "to" / "reference", max_position_embeddings=1024)
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": f"document {number} " + "and so on " * (number % 7 + 1)}) for number in range(600)]
    (tmp_path / "texts" / "words.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "my.yaml").write_text(RECIPE, encoding="utf-8")
    assert "10_000_000" in block
    script = block.replace("10_000_000", "5_000")  # the one thing changed: so few tokens does this test have
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "nats per token" in ended.stdout
    assert (tmp_path / "runs" / "my" / "report.html").exists()


def test_the_readme_shows_every_verb():
    verbs = {"demo", "init", "run", "inherit", "doctor", "prepare", "train", "eval", "analyze"}
    assert {words[0] for words in COMMANDS} >= verbs


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_understood(words):
    function, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
    assert callable(function)
    assert bound.args or bound.kwargs or words == ["demo"]


def test_a_command_with_an_unknown_option_would_be_seen():
    with pytest.raises(Exception, match="--layerz"):
        build_app().parse_args(["inherit", "A", "B", "--layerz", "3"], exit_on_error=False, print_error=False)
