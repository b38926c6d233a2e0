"""What the size of a compiled loss chunk costs: the gradient of one micro-batch, in a process of its own for each size.

    python benchmarks/head_chunks.py --vocabulary 128000 --shape llama [--positions 131 512 1024] [--steps 3]

One layer of a shape of ``throughput.py`` with another vocabulary, float32, compiled, deterministic, freed memory kept.
Prints one JSON line for each size: seconds of every step after the one that compiles, and the peak of resident memory.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

from speed.shapes import SHAPES


def measure(shape_name: str, vocabulary: int, positions: int, steps: int) -> dict[str, object]:
    """Seconds and memory with chunks of at most so many positions."""
    import torch
    from speed.contenders import build

    from inheritune.machine.allocator import keep_freed_memory
    from inheritune.machine.memory import peak_memory_bytes
    from inheritune.machine.probe import Choices, computing_as
    from inheritune.training import gradient

    keep_freed_memory()
    shape = replace(SHAPES[shape_name], depth=1, vocabulary=vocabulary)
    model = build(shape).train()
    choices = Choices("cpu", "float32", True, shape.micro_batch, threads=torch.get_num_threads(), deterministic=True)
    rows = torch.randint(0, vocabulary, (shape.micro_batch, shape.sequence_length + 1))
    seconds = []
    with computing_as(choices):
        functions, choices = gradient.prepare_loss(model, choices, vocabulary, sequence_length=shape.sequence_length)
        functions = replace(functions, positions_at_once=positions)
        for _ in range(steps + 1):
            begin = time.perf_counter()
            model.zero_grad(set_to_none=True)
            gradient.accumulate_gradient(functions, rows, choices)
            seconds.append(round(time.perf_counter() - begin, 2))
    return {
        "shape": shape_name,
        "vocabulary": vocabulary,
        "positions": gradient.even_chunk(shape.micro_tokens, positions),
        "seconds": seconds[1:],
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama")
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--positions", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.shape, given.vocabulary, given.positions[0], given.steps)))
        return
    for positions in given.positions:
        words = ["--shape", given.shape, "--vocabulary", str(given.vocabulary), "--positions", str(positions)]
        subprocess.run([sys.executable, __file__, *words, "--steps", str(given.steps), "--worker"], check=True)


if __name__ == "__main__":
    main()
