"""Everything, without a time limit: run it before an issue is called resolved (`.ci/full` does).

Runs each check in the environment it is started in, and writes ``benchmarks/results/full-DATE.json``: the commit, and
of each check the command, exit code, seconds and the end of what it printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from inheritune.runs import machine_facts

ROOT = Path(__file__).resolve().parents[1]
BOOKS = ROOT.parent / "shared" / "data" / "corpora" / "books"
TAIL_CHARACTERS = 1500


def checks(folder: Path) -> dict[str, list[str]]:
    """Name and command of each check; a check of a folder that is not here is left out and named."""
    python = sys.executable
    demo = folder / "demo"
    listed = {
        "lint": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "types": [python, "-m", "mypy"],
        "tests": [python, "-m", "pytest", "-q"],
        "start-up": [python, "benchmarks/startup.py"],
        "demo": [python, "-m", "inheritune", "demo", "--run-dir", str(demo)],
        "killed demo": [python, "benchmarks/killed_demo.py", str(folder / "kills"), "--undisturbed", str(demo)],
    }
    for name in ("books-llama", "books-gpt2"):
        if BOOKS.exists():
            asked = ["--data.sources", f"[{BOOKS}]", "--run-dir", str(folder / name)]
            listed[name] = [python, "-m", "inheritune", "run", f"benchmarks/{name}.yaml", *asked]
    return listed


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, command in checks(Path(temporary)).items():
            print(f"== {name}", flush=True)
            begin = time.monotonic()
            ended = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            shown = (
                ended.stdout.replace(temporary, "OUT").replace(str(ROOT.parent), "..").replace(sys.executable, "python")
            )
            words = [
                word.replace(temporary, "OUT").replace(str(ROOT.parent), "..") for word in ["python", *command[1:]]
            ]
            seconds = round(time.monotonic() - begin, 1)
            results[name] = {
                "command": " ".join(words),
                "exit_code": ended.returncode,
                "seconds": seconds,
                "printed": shown[-TAIL_CHARACTERS:],
            }
            print(f"exit code {ended.returncode} after {seconds} s\n{shown[-TAIL_CHARACTERS:]}", flush=True)
    honest = {"books-llama", "books-gpt2"}  # 5, parity not shown, is a result and not a failure
    broken = [
        name
        for name, result in results.items()
        if result["exit_code"] and not (name in honest and result["exit_code"] == 5)
    ]
    path = ROOT / "benchmarks" / "results" / f"full-{datetime.now(UTC).date()}.json"
    left_out = [] if BOOKS.exists() else ["books-llama, books-gpt2: no ../shared/data/corpora/books"]
    report = {"commit": commit.stdout.strip(), "broken": broken, "left_out": left_out, **machine_facts()}
    path.write_text(json.dumps({**report, "checks": results}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}; broken: {broken or 'nothing'}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
