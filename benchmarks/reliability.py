"""Run the reliability tests in their long form and write what they have shown.

    python benchmarks/reliability.py [--short] [--docs docs/reliability.md]

Every test marked ``@pytest.mark.reliability("R1")`` counts for that row, wherever it lies. Writes the table and
``benchmarks/results/reliability-DATE.json`` (each test with outcome and seconds); exit code 1 where a test failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from commit import commit_here, short

from inheritune.runs import machine_facts

ROOT = Path(__file__).resolve().parents[1]

ROWS = {
    "R1": (
        "`kill -9` at random times, and in the middle of all that is written: data, checkpoints, pointer, models, "
        "scores, summary, report; started again until done",
        "weights, Adam moments, losses, scores and shards bitwise those of the undisturbed run, after each of 20 kills",
    ),
    "R2": (
        "a clean stop and resume at step 0, inside a pass, at the last step of one and the first of the next, between "
        "micro-batches, in the cool-down, in every round",
        "as R1; the tensors are equal before the first step after the resume, too",
    ),
    "R3": ("resumed two and three times, also without a step in between", "as R1"),
    "R4": ("1, 2, 4, 1 processes, the batch the same", "the same rows in the same order; losses within 1e-5, relative"),
    "R5": ("hidden size and vocabulary that the processes do not divide", "as R4; moments element by element"),
    "R6": (
        "micro-batch changed at a resume (there are no data workers)",
        "the same rows in the same order; losses within 1e-5",
    ),
    "R7": ("100 steps of three architectures against a stored file", "bitwise where it was made, 1e-4 elsewhere"),
    "R8": (
        "gradients of 1, 4 and 8 micro-batches, the last one ragged",
        "within 1e-6 of the whole batch's, every token weighing the same",
    ),
    "R9": ("loss by chunks against plain loss, float32 and bfloat16", "gradients within 1e-5, relative, in float32"),
    "R10": ("compiled against plain, 50 steps", "losses within 1e-4"),
    "R11": (
        "SIGTERM in a step, a save, a validation, the first compilation, the preparation of data; two signals; Ctrl-C",
        "exit code 4, a checkpoint of the step under way and no further step, an exact resume",
    ),
    "R12": ("SIGTERM for one of two processes", "both save the same step and end within 30 s"),
    "R13": (
        "no space for shards, index, manifest, checkpoint, pointer, log, scores, summary, card, report",
        "exit code 3 with the bytes needed and free; the checkpoint before loads, its pointer stands; less than two "
        "checkpoints free is refused before the first step; gone on from when there is space",
    ),
    "R14": (
        "killed before a save is durable; a save slower than its interval (saves are synchronous here)",
        "the pointer never names a folder that is not whole; never two saves at a time",
    ),
    "R15": (
        "shards with a flipped bit, cut, empty, of another type or tokenizer, or missing",
        "refused at the start, the file named; never a wrong token",
    ),
    "R16": (
        "safetensors cut at 20 lengths, with a header of 2^63 bytes, overlapping offsets, bytes behind the end",
        "one clear error that names the file; no crash, nothing half loaded",
    ),
    "R17": (
        "pickles that run code, as `.bin`, `.pt`, `training_args.bin`, a data set's cache",
        "the code does not run; remote code is off",
    ),
    "R18": (
        "a loss that is not finite, an infinite gradient, a loss that jumps",
        "the policy holds; the state after a skipped step is the one before; an error after too many",
    ),
    "R19": (
        "two processes in one folder; the first one killed",
        "the second is refused and leaves it alone; after the kill the folder is free",
    ),
    "R20": (
        "preparation of data killed at random times and in its writes, run again (one process)",
        "shards and manifest bitwise the same",
    ),
    "R21": (
        "a recipe changed at a resume",
        "what may change is applied and recorded; the rest is refused by name",
    ),
    "R22": (
        "the clock set back and forward; a full disk of logs; no home and no place for caches; no network",
        "the run ends equal, bitwise, with its own exit code",
    ),
    "R23": ("the start of a round of growth", "logits bitwise those of the reference cut at that depth, in float32"),
    "R24": (
        "the child in a clean process with transformers alone; three families",
        "logits bitwise the same in float32; it generates; tied weights are tied",
    ),
    "R25": (
        "20,000 steps, restarted every 400",
        "resident memory grows by less than 1 % after warm-up, open files do not; equal to the run without restarts",
    ),
    "R26": (
        "candidates side by side: one killed, the driver killed",
        "what was finished is not run again; the same report",
    ),
}
"""What is tested, and when it passes."""

NOT_ON_ONE_PROCESS = {"R4", "R5", "R12", "R26"}


@dataclass(frozen=True)
class Outcome:
    """One test as it ended."""

    test: str
    rows: tuple[str, ...]
    state: str
    """passed, failed or skipped"""
    seconds: float


def run_tests(*, short: bool) -> tuple[int, list[Outcome]]:
    """Run them; gives pytest's exit code and what each test has come to."""
    environment = {name: value for name, value in os.environ.items() if name != "INHERITUNE_FULL"}
    if not short:
        environment["INHERITUNE_FULL"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "junit.xml"
        words = ["-m", "pytest", "-q", "-m", "reliability", f"--junitxml={path}", "-o", "junit_family=xunit1"]
        words += [] if short else ["--timeout", "14400"]
        ended = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=False)
        return ended.returncode, outcomes(path.read_text(encoding="utf-8")) if path.exists() else []


def outcomes(junit: str) -> list[Outcome]:
    """What a JUnit file says of each test."""
    found = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        parts = {part.tag for part in case}
        state = "failed" if parts & {"failure", "error"} else "skipped" if "skipped" in parts else "passed"
        rows = [each.get("value", "") for each in case.iter("property") if each.get("name") == "reliability"]
        name = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
        found.append(Outcome(name, tuple(rows), state, float(case.get("time", "0"))))
    return found


def state_of(row: str, tests: list[Outcome]) -> str:
    """A row's state, in words."""
    if not tests:
        return "not on one process" if row in NOT_ON_ONE_PROCESS else "no test"
    number = {state: sum(test.state == state for test in tests) for state in ("passed", "failed", "skipped")}
    if number["failed"]:
        return f"**failed** ({number['failed']} of {len(tests)})"
    if number["skipped"]:
        return f"passed, {number['skipped']} skipped" if number["passed"] else "skipped"
    return "passed, all"


def table(found: list[Outcome], facts: dict[str, Any], *, commit: str, date: str, is_short: bool) -> str:
    """The page."""
    machine = facts["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Reliability",
        "",
        "What a run survives, by test. Equal means bitwise equal: weights, moments, losses and scores.",
        "",
        f"    python benchmarks/reliability.py{' --short' if short else ''}",
        "",
        f"{date}, commit {commit}, {'short' if is_short else 'long'} form. {machine['processor']}, {machine['cores']} "
        f"cores, {machine['system'].partition('-')[0]}; {versions}. This page is made by the command above, whole.",
        "",
        "| | what is tested | it passes when | state | tests | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row, (what, criterion) in ROWS.items():
        tests = [test for test in found if row in test.rows]
        seconds = f"{sum(test.seconds for test in tests):.0f}" if tests else ""
        lines.append(f"| {row} | {what} | {criterion} | {state_of(row, tests)} | {len(tests) or ''} | {seconds} |")
    failed = sorted({test.test for test in found if test.state == "failed"})
    lost = [test.test for test in found if test.state == "failed" and not test.rows]
    if lost:  # a worker that died cannot say which row its test was of
        lines += ["", f"No row can be believed: {len(lost)} tests ended without saying which of them they are of."]
    if failed:
        lines += ["", "Failed:", "", *(f"- `{name}`" for name in failed)]
    lines += [
        "",
        "The short form (3 kills for 20, 500 steps for 10,000, traced and not compiled, one start-up for all of them) "
        "runs with every `pytest`. Two tests run at a time. "
        "Not on one process: these need several, and training on several is not built.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="the form that runs with every pytest")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "reliability.md")
    given = parser.parse_args()
    commit, date, facts, begin = commit_here(), str(datetime.now(UTC).date()), machine_facts(), time.monotonic()
    code, found = run_tests(short=given.short)
    if not found:
        sys.exit(f"pytest ended with {code} and without a record of any test; {given.docs} stays as it is")
    given.docs.write_text(table(found, facts, commit=short(commit), date=date, is_short=given.short), encoding="utf-8")
    record = {
        "date": date,
        "commit": commit,
        "form": "short" if given.short else "long",
        "seconds": round(time.monotonic() - begin, 1),
        "pytest_exit_code": code,
        **facts,
        "rows": {
            row: {
                "state": state_of(row, [test for test in found if row in test.rows]).replace("*", ""),
                "tests": {
                    test.test: {"state": test.state, "seconds": round(test.seconds, 1)}
                    for test in found
                    if row in test.rows
                },
            }
            for row in ROWS
        },
    }
    path = ROOT / "benchmarks" / "results" / f"reliability-{date}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {given.docs} and {path}; pytest ended with {code}")
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
