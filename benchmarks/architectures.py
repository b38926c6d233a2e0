"""Every causal-LM type of the installed transformers, cut to 5, 1 and 11 of 12 layers: writes docs/architectures.md.

Run it alone (``python benchmarks/architectures.py``) or with everything (``.ci/full``). It fails only where a law is
broken: a child that is silently wrong, or fewer than 135 types that are exact at 5 of 12 layers.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "surgery"))

import torch  # noqa: E402
import transformers  # noqa: E402
from architectures import cutting, nursery  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
DEPTHS = (5, 1, 11)
LEAST_EXACT = 135
PROCESSES = 2
MAX_SECONDS, MAX_BYTES = 240, 12 * 2**30
"""Of one type."""


HEAD = """# Model types and what a cut makes of them

Every causal-LM type that transformers {version} maps: {mapped}, of which {built} are built here. Written by
`python benchmarks/architectures.py`; do not edit.

A tiny random parent of 12 layers is saved, its **files** are cut, the child is loaded again with no tensor missing or
left over, and judged without the tool's own proof: the hidden state after each kept layer against the parent's, and the
logits against the parent's with its upper layers taken out in memory. *Exact* is a largest difference of 0.0 (the
largest of all exact ones is {largest}). *Refused* is refused before a byte is written; the depth that is named was cut,
too, and is exact. In the column of moved layers each kept layer is given what it got in the parent, and must give what
it gave, or the certificate says that it computes something else (*changed, said*).

"""


def try_type(model_type: str, folder: str, result: Path) -> None:
    """In a process of its own: cut one type everywhere; writes the outcomes as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    torch.set_num_threads(1)
    outcomes = {str(depth): asdict(each) for depth, each in cutting.judge(model_type, Path(folder), DEPTHS).items()}
    outcomes["moved"] = asdict(cutting.judge_moved(Path(folder) / "parent", Path(folder) / "child-moved"))
    result.write_text(json.dumps(outcomes), encoding="utf-8")


def guarded(model_type: str) -> dict[str, Any]:
    """The outcomes of one type; one that takes too long, too much or falls over is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcomes.json"
        process = multiprocessing.get_context("fork").Process(target=try_type, args=(model_type, folder, result))
        process.start()
        process.join(MAX_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        print(model_type, "done" if result.exists() else f"ended with {process.exitcode}", flush=True)
        if result.exists():
            return dict(json.loads(result.read_text(encoding="utf-8")))
    reason = f"its process ended with {process.exitcode} (limits: {MAX_SECONDS} s, {MAX_BYTES // 2**30} GiB)"
    fault = asdict(cutting.Outcome("wrong", None, reason))
    return dict.fromkeys((*map(str, DEPTHS), "moved"), fault)


def word(outcome: dict[str, Any], *, moved: bool = False) -> str:
    """One cell: the outcome and its number."""
    if outcome["kind"] == "exact":
        return "changed, said" if moved and outcome["difference"] else "exact"
    if outcome["kind"] == "wrong":
        return f"**wrong** {outcome['difference'] or ''}".strip()
    return "refused" if outcome["nearest"] is None else f"refused, {outcome['nearest']} works"


def remark(outcomes: dict[str, Any]) -> str:
    """What a reader should know: reason of a refusal, notes of the certificate."""
    first = outcomes["5"]
    refused = [outcomes[key] for key in outcomes if outcomes[key]["kind"] != "exact"]
    notes = [note for note in first["notes"] if "tokenizer" not in note and "not verified" not in note]
    notes += [note for note in outcomes["moved"]["notes"] if "do not compute" in note]
    said = [*notes, *(each["reason"] for each in refused[:1])]
    return " ".join(" ".join(said).split()).replace("|", "/").replace("<", "&lt;")[:400]


def page(table: dict[str, dict[str, Any]]) -> str:
    """docs/architectures.md."""
    columns = {**{f"first {depth} of 12": str(depth) for depth in DEPTHS}, "layers 0, 2, 4, 7, 11": "moved"}
    counts = []
    for name, key in columns.items():
        kinds = [outcomes[key]["kind"] for outcomes in table.values()]
        counts.append(f"| {name} | {kinds.count('exact')} | {kinds.count('refused')} | {kinds.count('wrong')} |")
    found = [outcomes[str(depth)] for outcomes in table.values() for depth in DEPTHS]
    largest = max((each["difference"] for each in found if each["kind"] == "exact"), default=0.0)
    rows = []
    for name, outcomes in table.items():
        cells = [*(word(outcomes[str(depth)]) for depth in DEPTHS), word(outcomes["moved"], moved=True)]
        rows.append(f"| {name} | {' | '.join(cells)} | {remark(outcomes)} |")
    return (
        HEAD.format(
            version=transformers.__version__,
            mapped=len(table) + len(nursery.NOT_BUILDABLE),
            built=len(table),
            largest=largest,
        )
        + "\n".join(["| selection | exact | refused | silently wrong |", "|---|---|---|---|", *counts, ""])
        + "\n".join(
            ["", "| type | 5 of 12 | 1 of 12 | 11 of 12 | 0, 2, 4, 7, 11 | remarks |", "|---|---|---|---|---|---|"]
        )
        + "\n".join(["", *rows, "", "## Not built here", "", ""])
        + "".join(f"- {name}: {reason}\n" for name, reason in sorted(nursery.NOT_BUILDABLE.items()))
    )


def main() -> None:
    asked = sys.argv[1:]
    names = asked or list(nursery.TYPES)
    with ThreadPoolExecutor(PROCESSES) as pool:
        table = dict(zip(names, pool.map(guarded, names), strict=True))
    text = page(table)
    if asked:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")
    wrong = [
        f"{name} ({key}): {outcome['reason']}"
        for name, outcomes in table.items()
        for key, outcome in outcomes.items()
        if outcome["kind"] == "wrong"
    ]
    exact = sum(outcomes["5"]["kind"] == "exact" for outcomes in table.values())
    print(
        f"{exact} of {len(table)} exact at 5 of 12 (at least {LEAST_EXACT} wanted); silently wrong: {wrong or 'none'}"
    )
    sys.exit(1 if wrong or (exact < LEAST_EXACT and not asked) else 0)


if __name__ == "__main__":
    main()
