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
from typing import Any

from inheritune.runs import machine_facts

ROOT = Path(__file__).resolve().parents[1]
BOOKS = ROOT.parent / "shared" / "data" / "corpora" / "books"
TYPES = "tests/surgery/architectures/test_architectures.py::test_child_of_every_type_is_exact_or_refused"
"""Its long form does what ``architectures.py`` does."""

TAIL_CHARACTERS = 5000


def checks(folder: Path) -> dict[str, list[str]]:
    """Name and command of each check; a check of a folder that is not here is left out and named."""
    python = sys.executable
    demo = folder / "demo"
    pytest = [python, "-m", "pytest", "-q", "-m", "not reliability"]
    listed = {
        "lint": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "types": [python, "-m", "mypy"],
        "model types": [python, "benchmarks/architectures.py"],
        "surgery": ["env", "INHERITUNE_FULL=1", *pytest, "tests/surgery", "--dist", "worksteal", "--deselect", TYPES],
        "tests": [*pytest, "--durations", "40", "--ignore", "tests/surgery"],
        "tasks": ["env", "INHERITUNE_FULL=1", *pytest, "tests/real/test_tasks.py"],
        "reliability": [python, "benchmarks/reliability.py"],
        "start-up": [python, "benchmarks/startup.py"],
        "demo": [python, "-m", "inheritune", "demo", "--run-dir", str(demo)],
    }
    for name in ("books-llama", "books-gpt2"):
        if BOOKS.exists():
            asked = ["--data.sources", f"[{BOOKS}]", "--run-dir", str(folder / name)]
            listed[name] = [python, "-m", "inheritune", "run", f"benchmarks/{name}.yaml", *asked]
    kills = str(folder / "kills")
    listed["killed demo"] = [python, "benchmarks/killed_demo.py", kills, "--undisturbed", str(demo)]
    return listed


def run_check(command: list[str], folder: str) -> dict[str, Any]:
    """Run one check; what it printed names neither this machine's folders nor its interpreter."""

    def cleaned(text: str) -> str:
        for path, name in ((folder, "OUT"), (str(ROOT.parent), ".."), (sys.executable, "python")):
            text = text.replace(path, name)
        return text

    begin = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return {
        "command": cleaned(" ".join(command)),
        "exit_code": ended.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "printed": cleaned(ended.stdout)[-TAIL_CHARACTERS:],
    }


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    path = ROOT / "benchmarks" / "results" / f"full-{datetime.now(UTC).date()}.json"
    results: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        listed = checks(Path(temporary))
        for name, command in listed.items():
            print(f"== {name}", flush=True)
            result = results[name] = run_check(command, temporary)
            print(f"exit code {result['exit_code']} after {result['seconds']} s\n{result['printed']}", flush=True)
            honest = name.startswith("books") and result["exit_code"] == 5  # parity not shown is a result, no failure
            if result["exit_code"] and not honest:
                broken.append(name)
            report = {
                "commit": commit.stdout.strip(),
                "broken": broken,
                "not_run": [other for other in listed if other not in results],
                "left_out": [] if BOOKS.exists() else ["books: no ../shared/data/corpora/books"],
                **machine_facts(),
                "checks": results,
            }
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")  # after each: a stop loses nothing
    print(f"wrote {path}; broken: {broken or 'nothing'}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
