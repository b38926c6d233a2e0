"""What keeping freed memory is worth: scoring and training with and without it, in turn, in processes of their own.

    python benchmarks/freed_memory.py RUN [--rounds 5]

RUN is a run folder of the demo; its watch half is scored by the demo's reference, and 20 steps are trained on its
shards, uncompiled. Prints one JSON object: medians in seconds, their ratios, and page faults.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_STEPS = 20


def measure(run: Path, *, kept: bool) -> dict[str, float]:
    if kept:
        from inheritune.machine.allocator import keep_freed_memory

        assert keep_freed_memory(), "the C library here is not glibc"
    import torch

    import inheritune
    from inheritune.data.batches import Position, Sampler
    from inheritune.data.shards import Shards
    from inheritune.evaluation.token_loss import score_documents
    from inheritune.machine.probe import Choices, computing_as
    from inheritune.surgery.folder import load_model
    from inheritune.training.gradient import accumulate_gradient, prepare_loss

    model = load_model(Path(inheritune.__file__).parent / "recipes" / "demo_reference")
    shards = Shards.open(run / "data", verify=False)
    watch, train = shards.sequence("watch"), Sampler(shards.sequence("train"), 256, 0)
    documents = [watch.document(index) for index in range(watch.num_documents)]
    rows = torch.from_numpy(train.rows(Position(0, 0), 8)[0])
    choices = Choices("cpu", "float32", False, 8, threads=torch.get_num_threads(), deterministic=True)
    functions, choices = prepare_loss(model.train(), choices, 4096, sequence_length=256)

    def score() -> None:
        score_documents(model, documents, sequence_length=256)

    def step() -> None:
        with computing_as(choices):
            for _ in range(NUM_STEPS):
                model.zero_grad(set_to_none=True)
                accumulate_gradient(functions, rows, choices)

    found = {}
    for name, work in (("score", score), ("steps", step)):
        work()  # once to warm up
        faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        work()
        found[f"{name}_s"] = time.perf_counter() - begin
        found[f"{name}_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return found | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=["kept", "given-back"])
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.run, kept=given.one == "kept")))
        return
    measured: dict[str, list[dict[str, float]]] = {"given-back": [], "kept": []}
    for _ in range(given.rounds):
        for how, results in measured.items():
            command = [sys.executable, __file__, str(given.run), "--one", how]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(ended.stdout.splitlines()[-1]))
    medians = {
        how: {name: statistics.median(each[name] for each in results) for name in results[0]}
        for how, results in measured.items()
    }
    ratios = {
        name: statistics.median(
            kept[name] / back[name] for kept, back in zip(measured["kept"], measured["given-back"], strict=True)
        )
        for name in ("score_s", "steps_s")
    }
    print(json.dumps({"medians": medians, "median_ratio_kept": ratios, "rounds": given.rounds}, indent=2))


if __name__ == "__main__":
    main()
