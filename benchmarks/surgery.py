"""How fast and how lean a big model is cut, beside ``cp`` and two peers, in turn, several rounds in one run.

    python benchmarks/surgery.py --folder FOLDER [--rounds 3] [--mergekit-python PYTHON] [--layers 13]

FOLDER is on the disk to be measured and needs 15 GB; what is made there is removed at the end. The reference has the
shape of OpenLLaMA-3B (26 layers, hidden size 3200, float16, 6.9 GB) and random finite weights. Goals: the copy with
sync at most 1.15 times ``cp`` and ``sync`` of the kept bytes; at most 300 MB of anonymous memory above the start of the
copy; the whole command at most 2 times ``cp`` and ``sync``, and the start-up. Writes
``benchmarks/results/surgery-DATE.json``.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commit import commit_here

HERE = Path(__file__).resolve().parent
SHAPE = {"hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32, "vocab_size": 32_000}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 320}
DEPTH = 26
NEEDED_BYTES = 15_000_000_000
BLOCK_BYTES = 64 * 2**20
LOAD_AND_SAVE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16, num_hidden_layers=int(sys.argv[3]))
model.save_pretrained(sys.argv[2])
"""
PASSTHROUGH = """
slices: [{sources: [{model: MODEL, layer_range: [0, LAYERS]}]}]
merge_method: passthrough
dtype: float16
"""


def make_reference(folder: Path, sizes: dict[str, int]) -> None:
    """A Llama of these sizes with random finite float16 weights, as one file."""
    import numpy as np

    from inheritune.surgery.tensor_file import Piece, encode_header, ordered

    width, inner, vocabulary = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    layer = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shapes = {"model.embed_tokens": (vocabulary, width), "model.norm": (width,), "lm_head": (vocabulary, width)}
    shapes |= {f"model.layers.{index}.{name}": shape for index in range(DEPTH) for name, shape in layer.items()}
    pieces = ordered([Piece(f"{name}.weight", None, "F16", shape) for name, shape in shapes.items()])
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": DEPTH,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    values = np.random.default_rng(0).normal(0, 0.02, BLOCK_BYTES // 2).astype(np.float16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(pieces))
        left = sum(piece.num_bytes for piece in pieces)
        while left:
            left -= file.write(values[: min(left, len(values))])


def anonymous_bytes(process: int | str = "self") -> int:
    """Anonymous memory of a process now (Linux); 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


class Peak:
    """The most anonymous memory of a process within a block, looked at every 20 ms."""

    def __init__(self, process: int | str = "self") -> None:
        self.process, self.start, self.most, self._over = process, 0, 0, threading.Event()

    def __enter__(self) -> "Peak":
        self.start = self.most = anonymous_bytes(self.process)
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, anonymous_bytes(self.process))

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()


def phases(reference: Path, out: Path, layers: int) -> None:
    """Each phase of a cut by itself, one after the other; prints seconds and memory as JSON."""
    from inheritune.runs import sync_file
    from inheritune.surgery.cut import plan_cut
    from inheritune.surgery.folder import check_files
    from inheritune.surgery.proof import first_difference, states_of
    from inheritune.surgery.tensor_check import hash_written
    from inheritune.surgery.transplant import MAX_SHARD_BYTES, write_weights

    told: dict[str, Any] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        with Peak() as peak:
            begin = time.perf_counter()
            value = call()
            told[name] = {"seconds": time.perf_counter() - begin, "anonymous_bytes": peak.most - peak.start}
        return value

    weights = check_files(reference)
    cut = timed("plan", lambda: plan_cut(weights, layers))
    out.mkdir()

    def copy() -> dict[Path, Any]:
        files = write_weights(out, cut.pieces, MAX_SHARD_BYTES)
        for path in files:
            sync_file(path)
        return files

    files = timed("copy and sync", copy)
    timed("hash, finite, compare", lambda: hash_written(files))
    (out / "config.json").write_text(json.dumps(cut.config))
    expected = timed("reference by layer", lambda: states_of(weights, layers, to_the_end=False, is_child=False))
    found = timed("child by layer", lambda: states_of(check_files(out), layers, to_the_end=False, is_child=True))
    assert first_difference(expected, found) == (0.0, "")
    print(json.dumps(told))


def run(*words: str | Path) -> dict[str, Any]:
    """Wall time and peak anonymous memory of a command; its output where it prints JSON."""
    begin = time.perf_counter()
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with Peak(process.pid) as peak:
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    told: dict[str, Any] = {"seconds": time.perf_counter() - begin, "anonymous_bytes": peak.most}
    with suppress(ValueError):
        told["phases"] = json.loads(output)
    return told


def warmed(path: Path) -> None:
    """Read a file, so that every way finds its bytes in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK_BYTES):
            pass


def synced(told: dict[str, Any], out: Path) -> dict[str, Any]:
    """The same, with the time that its files take to be on the disk."""
    begin = time.perf_counter()
    for path in [out] if out.is_file() else sorted(out.glob("*.safetensors")):
        subprocess.run(["sync", path], check=True)
    return {**told, "seconds": told["seconds"] + time.perf_counter() - begin}


def measure(folder: Path, rounds: int, layers: int, mergekit: str | None) -> list[dict[str, Any]]:
    """Every way in turn; gives one dict from name to figures for each round."""
    reference, tiny, kept, out = (folder / name for name in ("reference", "tiny", "kept.bin", "out"))
    make_reference(reference, SHAPE)
    make_reference(tiny, TINY)
    python = sys.executable
    run(python, "-m", "inheritune", "inherit", reference, folder / "first", "--layers", str(layers), "--no-verify")
    (folder / "first" / "model.safetensors").rename(kept)
    (folder / "merge.yml").write_text(PASSTHROUGH.replace("MODEL", str(reference)).replace("LAYERS", str(layers)))
    inherit = (python, "-m", "inheritune", "inherit")
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "cp + sync": lambda: synced(run("cp", kept, out), out),
        "phases": lambda: run(python, __file__, "--phases", reference, out, "--layers", str(layers)),
        "start-up (inherit of a tiny model)": lambda: run(*inherit, tiny, out, "--layers", str(layers)),
        "inherit": lambda: run(*inherit, reference, out, "--layers", str(layers)),
        "inherit --no-verify": lambda: run(*inherit, reference, out, "--layers", str(layers), "--no-verify"),
        "transformers load and save": lambda: synced(
            run(python, "-c", LOAD_AND_SAVE, reference, out, str(layers)), out
        ),
    }
    if mergekit:
        merge = (mergekit, "-m", "mergekit.scripts.run_yaml", folder / "merge.yml", out)
        ways["mergekit passthrough"] = lambda: synced(run(*merge), out)
    found = []
    for number in range(rounds):
        found.append({})
        for name, way in ways.items():
            warmed(kept if name.startswith("cp") else reference / "model.safetensors")
            found[-1][name] = way()
            print(f"round {number + 1} | {name} | {found[-1][name]['seconds']:.2f} s", flush=True)
            out.unlink() if out.is_file() else shutil.rmtree(out)
    return found


def flat(told: dict[str, Any]) -> dict[str, dict[str, float]]:
    """One round's figures, the phases as lines of their own."""
    lines = {name: each for name, each in told.items() if name != "phases"}
    return {**lines, **{f"phase: {name}": each for name, each in told["phases"]["phases"].items()}}


def table(medians: dict[str, dict[str, float]]) -> str:
    """The medians as Markdown."""
    cp = medians["cp + sync"]["seconds"]
    lines = ["| what | seconds | times `cp` + `sync` | anonymous memory, MB |", "|---|---|---|---|"]
    for name, each in medians.items():
        memory = f"{each['anonymous_bytes'] / 1e6:.0f}" + (" above its start" if name.startswith("phase") else "")
        lines.append(f"| {name} | {each['seconds']:.2f} | {each['seconds'] / cp:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=DEPTH // 2)
    parser.add_argument("--mergekit-python", help="a Python in which mergekit is installed")
    parser.add_argument("--phases", type=Path, nargs=2, metavar=("REFERENCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phases:
        phases(*given.phases, given.layers)
        return
    if not given.folder:
        parser.error("--folder is needed")
    given.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(given.folder).free < NEEDED_BYTES:
        raise SystemExit(f"{given.folder} needs {NEEDED_BYTES / 1e9:.0f} GB of free space")

    from inheritune.runs import machine_facts

    work = given.folder / "surgery-benchmark"
    shutil.rmtree(work, ignore_errors=True)
    try:
        rounds = [flat(each) for each in measure(work, given.rounds, given.layers, given.mergekit_python)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    medians = {
        name: {
            figure: statistics.median(each[name][figure] for each in rounds)
            for figure in rounds[0][name]
            if figure != "phases"
        }
        for name in rounds[0]
    }
    cp, start = (medians[name]["seconds"] for name in ("cp + sync", "start-up (inherit of a tiny model)"))
    copy = medians["phase: copy and sync"]
    goals = {
        "copy and sync / (cp + sync), at most 1.15": copy["seconds"] / cp,
        "anonymous memory above the start of the copy, MB, at most 300": copy["anonymous_bytes"] / 1e6,
        "(inherit - start-up) / (cp + sync), at most 2": (medians["inherit"]["seconds"] - start) / cp,
        "(inherit --no-verify - start-up) / (cp + sync)": (medians["inherit --no-verify"]["seconds"] - start) / cp,
    }
    commit = commit_here()
    result = {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "median": medians,
        "goals": goals,
        **machine_facts(),
    }
    path = HERE / "results" / f"surgery-{result['date']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(medians)}\n")
    for name, value in goals.items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
