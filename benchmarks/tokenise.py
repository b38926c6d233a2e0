"""How fast text becomes shards, beside the bare tokenizer and ``datasets.map``, in turn, several rounds in one run.

    python benchmarks/tokenise.py TEXT.jsonl[.zst] ... --tokenizer FOLDER [--rounds 5]
    python benchmarks/tokenise.py TEXT.jsonl[.zst] ... --tokenizer FOLDER --sizes 1 4

Every way runs in a process of its own. ``prepare`` is the whole of ours: reading twice, choosing, encoding, writing,
hashing. The bare tokenizer encodes the same texts, already in memory, in batches, and throws the tokens away;
``datasets.map`` (batched, 2 processes) reads the same files and writes an Arrow file, with the tokenizer's own threads
as its users have them and without. Goals: ours at least 1.3 times the better of both and at least 0.88 times the bare
tokenizer; at most 1 GB of memory, whatever the corpus; batches at least 20 times as fast as training takes them.
``--sizes`` repeats the text so many times, with the number of the turn in front of each document so that none is a
duplicate: as it is, joined to few long texts, and with each line a text. Writes
``benchmarks/results/tokenise-DATE.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commit import commit_here

HERE = Path(__file__).resolve().parent
PROCESSES = 2
LONG_TEXTS = 24
"""To which the whole is joined."""

BATCH_TEXTS = 64
ROWS, LENGTH = 16, 1024
MIN_DOCUMENTS = 8
"""Held out, and cut to their opening: few, so that what is compared is whole texts."""


def texts_of(files: list[Path]) -> list[str]:
    """All texts of JSON lines."""
    from inheritune.data.sources import read_documents

    return [document.text for document in read_documents([str(path) for path in files], "text")]


def prepare(files: list[Path], tokenizer: Path, out: Path) -> dict[str, Any]:
    """The whole preparation."""
    import inheritune
    from inheritune.data.tokenizer import open_tokenizer

    open_tokenizer(tokenizer)  # imports transformers, which is start-up
    begin = time.perf_counter()
    shards = inheritune.prepare(
        [str(path) for path in files], out / "shards", tokenizer=tokenizer, min_documents=MIN_DOCUMENTS
    )
    seconds = time.perf_counter() - begin
    splits = shards.manifest["splits"].values()
    return {"seconds": seconds, "tokens": sum(each["tokens"] for each in splits)}


def bare(files: list[Path], tokenizer: Path, out: Path) -> dict[str, Any]:
    """``tokenizers`` alone."""
    from tokenizers import Tokenizer

    backend, texts = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), texts_of(files)
    tokens, begin = 0, time.perf_counter()
    for start in range(0, len(texts), BATCH_TEXTS):
        encoded = backend.encode_batch_fast(texts[start : start + BATCH_TEXTS], add_special_tokens=False)
        tokens += sum(len(each) for each in encoded)
    return {"seconds": time.perf_counter() - begin, "tokens": tokens}


def mapped(files: list[Path], tokenizer: Path, out: Path) -> dict[str, Any]:
    """``datasets.map`` as its users write it."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    data = Dataset.from_dict({"text": texts_of(files)})
    data.save_to_disk(str(out / "text"))
    data = Dataset.load_from_disk(str(out / "text"))
    begin = time.perf_counter()
    encoded = data.map(
        lambda batch: {"ids": fast(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=PROCESSES,
        remove_columns=["text"],
        cache_file_name=str(out / "encoded.arrow"),
    )
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": sum(len(ids) for ids in encoded["ids"])}


def batches(files: list[Path], tokenizer: Path, out: Path) -> dict[str, Any]:
    """Rows read from finished shards, the first look at each page of the files included."""
    import inheritune
    from inheritune.data.batches import Position, Sampler

    shards = inheritune.prepare(
        [str(path) for path in files], out / "shards", tokenizer=tokenizer, min_documents=MIN_DOCUMENTS
    )
    sampler = Sampler(shards.sequence("train"), sequence_length=LENGTH, seed=0)
    steps = shards.sequence("train").num_tokens // (ROWS * LENGTH)
    position, begin = Position(0, 0), time.perf_counter()
    for _ in range(steps):
        _, position = sampler.rows(position, ROWS)
    return {"seconds": time.perf_counter() - begin, "tokens": steps * ROWS * LENGTH}


WAYS: dict[str, Callable[[list[Path], Path, Path], dict[str, Any]]] = {
    "prepare": prepare,
    "bare tokenizer": bare,
    "datasets.map": mapped,
    "datasets.map, one thread a process": mapped,
    "batches": batches,
}


def memory_of(process: int) -> int:
    """Memory of a process and of those that it has started, shared pages counted once (Linux: PSS)."""
    total = 0
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(memory_of(int(child)) for child in (task / "children").read_text().split())
    return total


def run(way: str, files: list[Path], tokenizer: Path) -> dict[str, Any]:
    """One way in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, __file__, *map(str, files), "--tokenizer", str(tokenizer), "--way", way, "--out", out]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        peak, over = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.1):
                peak = max(peak, memory_of(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, errors = process.communicate()
        over.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{way}: {errors.strip().splitlines()[-1]}")
    return {**json.loads(output.strip().splitlines()[-1]), "peak_memory_bytes": peak}


def corpora(files: list[Path], times: int, out: Path) -> Iterator[tuple[str, int, Path]]:
    """What memory is measured on: name, documents, file."""
    texts = [f"{turn} {text}" for turn in range(times) for text in texts_of(files)]
    each = -(-len(texts) // LONG_TEXTS)
    joined = ["\n".join(texts[start : start + each]) for start in range(0, len(texts), each)]
    single = (f"{turn} {line}" for turn in range(times) for text in texts_of(files) for line in text.splitlines())
    for name, every in (("as it is", texts), ("few long texts", joined), ("each line a text", single)):
        path, count = out / "text.jsonl", 0
        with path.open("w", encoding="utf-8") as file:
            for text in every:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                count += 1
        yield name, count, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if "one thread" in given.way else "true"
        print(json.dumps(WAYS[given.way](given.files, given.tokenizer, given.out)))
        return
    from inheritune.runs import machine_facts

    num_bytes = sum(len(text.encode()) for text in texts_of(given.files))
    rounds = []
    for number in range(given.rounds):
        rounds.append({})
        for way in WAYS:
            told = run(way, given.files, given.tokenizer)
            rounds[-1][way] = {**told, "tokens_per_s": told["tokens"] / told["seconds"]}
            print(f"round {number + 1} | {way} | {told['seconds']:.2f} s | {told['tokens']:,} tokens", flush=True)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for times in given.sizes:
            for name, documents, path in corpora(given.files, times, Path(folder)):
                told = run("prepare", [path], given.tokenizer)
                sizes.append(
                    {"times": times, "text": name, "documents": documents, "bytes": path.stat().st_size, **told}
                )
                print(f"{times} times the text, {name} | {told['peak_memory_bytes'] / 1e6:.0f} MB", flush=True)

    def ratios(ours: str, *theirs: str) -> list[float]:
        """To the best of them, round by round."""
        return [each[ours]["tokens_per_s"] / max(each[their]["tokens_per_s"] for their in theirs) for each in rounds]

    result = {
        "commit": commit_here(),
        "date": datetime.now(UTC).date().isoformat(),
        **machine_facts(),
        "text_bytes": num_bytes,
        "rounds": rounds,
        "median": {
            way: {
                "seconds": statistics.median(each[way]["seconds"] for each in rounds),
                "tokens_per_s": statistics.median(each[way]["tokens_per_s"] for each in rounds),
                "most_memory_bytes": max(each[way]["peak_memory_bytes"] for each in rounds),
            }
            for way in WAYS
        },
        "sizes": sizes,
        "goals": {
            "prepare / datasets.map, at least 1.3": ratios("prepare", *(way for way in WAYS if "map" in way)),
            "prepare / bare tokenizer, at least 0.88": ratios("prepare", "bare tokenizer"),
        },
    }
    path = HERE / "results" / f"tokenise-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for way, each in result["median"].items():
        print(
            f"{way} | {each['seconds']:.2f} s | {each['tokens_per_s']:,.0f} tokens/s "
            f"| {each['most_memory_bytes'] / 1e6:.0f} MB"
        )
    for name, values in result["goals"].items():
        print(f"{name}: {statistics.median(values):.3f} ({', '.join(f'{each:.3f}' for each in values)})")


if __name__ == "__main__":
    main()
