"""How fast downstream tasks are scored: our forward pass against lm_eval's own, in turn, several rounds in one run.

    python benchmarks/scoring.py ROWS --tokenizer GPT2 [--rounds 3] [--items 100]

ROWS is a folder as ``inheritune eval --data`` reads it, with ``hellaswag.jsonl`` and ``arc_easy.jsonl``; GPT2 a folder
with GPT-2's tokenizer. The model has GPT-2 small's shape and random weights, float32. Two sets: hellaswag, zero-shot;
and MMLU's prompts with five examples, asked questions of ARC-Easy in two subjects' places (MMLU-like: four letters to
choose from behind shared examples). lm_eval's model first tries batch sizes on some items of each set and keeps its
best. Writes ``benchmarks/results/scoring-DATE.json``.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from commit import commit_here
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from inheritune.evaluation.agreement import agreement
from inheritune.evaluation.harness import Run, Tasks
from inheritune.evaluation.tasks import choose
from inheritune.runs import machine_facts

HERE = Path(__file__).resolve().parent
WINDOW = 1024
BATCHES = (1, 4, 8, 16, 32)
TRIED = 12
"""Items that batch sizes are tried on."""
SUBJECTS = ("high_school_biology", "high_school_chemistry")
SHOTS = 5


def write_mmlu_like(rows: Path, folder: Path, items: int) -> None:
    """Questions with four answers, in the files that MMLU's subjects are read from."""
    four = [
        {
            "question": row["question"],
            "choices": row["choices"]["text"],
            "answer": row["choices"]["label"].index(row["answerKey"]),
        }
        for row in map(json.loads, (rows / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines())
        if len(row["choices"]["text"]) == 4
    ]
    parts = iter(four)
    for subject in SUBJECTS:
        for name, count in (("dev", SHOTS), ("test", items // len(SUBJECTS))):
            path = folder / "mmlu" / subject / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(next(parts)) + "\n" for _ in range(count)), encoding="utf-8")


def timed(tasks: Tasks, model: Any, tokenizer: Any, **given: Any) -> tuple[float, Run]:
    """Seconds of one run, tokenising and metrics included, and what it gave."""
    begin = time.perf_counter()
    run = tasks.run(model, tokenizer, window=WINDOW, **given)
    return time.perf_counter() - begin, run


def measure(name: str, tasks: Tasks, model: Any, tokenizer: Any, rounds: int) -> Iterator[dict[str, Any]]:
    """One set, both engines in turn; after each round what is known so far."""
    tried = {batch: timed(tasks, model, tokenizer, engine="harness", batch=batch, limit=TRIED)[0] for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    done: list[dict[str, float]] = []
    for number in range(rounds):
        theirs_s, theirs = timed(tasks, model, tokenizer, engine="harness", batch=best)
        ours_s, ours = timed(tasks, model, tokenizer, engine="ours")
        done.append({"harness_s": theirs_s, "ours_s": ours_s, "ratio": theirs_s / ours_s})
        print(f"{name} | round {number + 1} | {json.dumps(done[-1])}", flush=True)
        yield {
            "items": sum(map(len, ours.items.values())),
            "tried_batches_s": tried,
            "harness_batch": best,
            "rounds": done,
            "ratio": statistics.median(each["ratio"] for each in done),
            "positions": ours.tally.pairs_positions,
            "computed_positions": ours.tally.computed_positions,
            "agreement": agreement(ours, theirs).to_json(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=100, help="of each set")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/scoring-DATE.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    date = datetime.now(UTC).date().isoformat()
    commit = commit_here()
    path = given.out or HERE / "results" / f"scoring-{date}.json"
    result: dict[str, Any] = {"commit": commit, "date": date, **machine_facts(), "sets": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mmlu_like(given.rows, folder / "data", given.items)
        lines = (given.rows / "hellaswag.jsonl").read_text(encoding="utf-8").splitlines()[: given.items]
        (folder / "data" / "hellaswag.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for each in ("hellaswag", "mmlu"):
            written = folder / each
            written.mkdir()
            tasks = Tasks(choose([each], written, data=folder / "data"), written)
            for so_far in measure(each, tasks, model, tokenizer, given.rounds):
                result["sets"][each] = so_far
                path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
