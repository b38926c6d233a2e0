"""The evaluation files beside the clone, as rows of the data sets they came from.

Some of them hold finished prompts or are split otherwise (SOURCES.md says which); the rows are got back from them.
"""

import csv
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_rows(source: Path, folder: Path) -> Path:
    """Every task's rows under ``folder``, as ``eval --data`` reads them."""
    for name, made in MAKERS.items():
        _write(folder / f"{name}.jsonl", made(source))
    for file in sorted((source / "blimp").glob("*.jsonl*")):
        _write(folder / "blimp" / f"{file.name.split('.')[0]}.jsonl", _lines(file))
    return folder


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _lines(path: Path) -> list[Row]:
    if path.suffix == ".zst":
        text = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout.decode()
    else:
        text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _arc(source: Path) -> list[Row]:
    return [
        {
            "question": row["query"].removeprefix("Question: "),
            "choices": {"text": row["choices"], "label": list("ABCDE"[: len(row["choices"])])},
            "answerKey": "ABCDE"[row["gold"]],
        }
        for row in _lines(source / "arc" / "arc_easy.jsonl")
    ]


def _piqa(source: Path) -> list[Row]:
    return [
        {
            "goal": row["query"].removeprefix("Question: ").removesuffix("\n"),
            "sol1": row["choices"][0],
            "sol2": row["choices"][1],
            "label": row["gold"],
        }
        for row in _lines(source / "piqa" / "piqa.jsonl")
    ]


def _boolq(source: Path) -> list[Row]:
    rows = []
    for row in _lines(source / "boolq" / "boolq.jsonl"):
        passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
        rows.append({"passage": passage, "question": question.strip().removesuffix("?"), "label": row["gold"]})
    return rows


def _winogrande(source: Path) -> list[Row]:
    rows = []
    for row in _lines(source / "winogrande" / "winogrande.jsonl"):
        first, second = row["context_options"]
        begin = next(at for at in range(len(first) + 1) if first[:at] != second[:at] or at == len(first)) - 1
        begin = first.rfind(" ", 0, max(begin, 0) + 1) + 1
        rows.append(
            {
                "sentence": f"{first[:begin]}_ {row['continuation']}",
                "option1": first[begin:],
                "option2": second[begin:],
                "answer": str(row["gold"] + 1),
            }
        )
    return rows


def _logiqa(source: Path) -> list[Row]:
    lines = (source / "logiqa" / "Test.txt").read_text(encoding="utf-8").split("\n")
    blocks = [lines[at : at + 8] for at in range(0, len(lines) - 7, 8)]
    return [
        {
            "label": block[1].strip(),
            "context": block[2],
            "question": block[3],
            "options": [each[2:] for each in block[4:8]],
        }
        for block in blocks
    ]


def _truthfulqa(source: Path) -> list[Row]:
    rows = []
    with (source / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            right, wrong = (
                [each.strip() for each in row[name].split(";") if each.strip()]
                for name in ("Correct Answers", "Incorrect Answers")
            )
            choices = {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)}
            first = {"choices": [right[0], *wrong], "labels": [1] + [0] * len(wrong)}
            rows.append({"question": row["Question"], "mc1_targets": first, "mc2_targets": choices})
    return rows


def _wnli(source: Path) -> list[Row]:
    with (source / "wnli" / "test.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{"sentence1": row["sentence1"], "sentence2": row["sentence2"], "label": int(row["label"])} for row in rows]


def _lambada(source: Path) -> list[Row]:
    return [
        {"text": f"{row['context']} {row['continuation']}"}
        for row in _lines(source / "lambada" / "lambada_openai.jsonl")
    ]


def _wikitext(source: Path) -> list[Row]:
    text = (source / "wikitext-2" / "test.txt").read_text(encoding="utf-8")
    pages = re.split(r"(?m)^(?= = [^=].*[^=] = $)", text)
    return [{"page": page} for page in pages if page.strip()]


MAKERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    "arc_easy": _arc,
    "piqa": _piqa,
    "boolq": _boolq,
    "winogrande": _winogrande,
    "logiqa": _logiqa,
    "truthfulqa_mc2": _truthfulqa,
    "wnli": _wnli,
    "lambada_openai": _lambada,
    "wikitext": _wikitext,
    "hellaswag": lambda source: _lines(source / "hellaswag" / "hellaswag_val_subset.jsonl"),
}
