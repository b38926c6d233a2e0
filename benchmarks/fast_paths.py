"""The fast paths alone: attention by blocks beside torch's fused one, and the loss in one pass beside torch's.

    python benchmarks/fast_paths.py [--rounds 5] [--precision bfloat16]

One thread, compiled, deterministic; CPU time of forward and backward, the best of some rounds. Prints JSON.
"""

# B sequences, H heads, T positions, D size of a head; N positions of a chunk, V vocabulary.

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inheritune.machine.allocator import keep_freed_memory
from inheritune.machine.attention import causal_attention
from inheritune.machine.probe import Choices, computing_as
from inheritune.training.gradient import sum_cross_entropy

ATTENTION = [(32, 6, 128, 64), (16, 6, 256, 48), (8, 12, 512, 64), (4, 12, 1024, 64), (2, 12, 2048, 64)]
LOSS = [(512, 32_000), (256, 50_257)]


def milliseconds(function: Callable[..., Tensor], leaves: list[Tensor], rounds: int) -> dict[str, float]:
    """Best forward and backward of a compiled function."""
    torch._dynamo.reset()
    compiled = torch.compile(function, dynamic=False)
    upstream = torch.randn_like(compiled(*leaves))
    forward, backward = [], []
    for _ in range(rounds + 1):
        for leaf in leaves:
            leaf.grad = None
        begin = time.process_time()
        result = compiled(*leaves)
        middle = time.process_time()
        result.backward(upstream)
        forward.append(middle - begin)
        backward.append(time.process_time() - middle)
    return {"forward_ms": 1e3 * min(forward[1:]), "backward_ms": 1e3 * min(backward[1:])}


def attention(sizes: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Both ways on one shape."""
    batch, heads, length, size = sizes
    leaves = [
        torch.randn(batch, length, heads, size).to(dtype).transpose(1, 2).detach().requires_grad_() for _ in range(3)
    ]
    ways = {
        "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "by blocks": lambda q, k, v: causal_attention(q, k, v, q.shape[-1] ** -0.5),
    }
    return {"B, H, T, D": sizes, **{name: milliseconds(way, leaves, rounds) for name, way in ways.items()}}


def loss(sizes: tuple[int, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Both ways on one chunk of logits."""
    logits_NV = torch.randn(*sizes).to(dtype).requires_grad_()
    targets_N = torch.randint(0, sizes[1], (sizes[0],))
    ways = {
        "F.cross_entropy": lambda x: F.cross_entropy(x.float(), targets_N, reduction="sum"),
        "in one pass": lambda x: sum_cross_entropy(x, targets_N),
    }
    return {"N, V": sizes, **{name: milliseconds(way, [logits_NV], rounds) for name, way in ways.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    given = parser.parse_args()
    keep_freed_memory()
    dtype = getattr(torch, given.precision)
    with computing_as(Choices("cpu", given.precision, True, 1, threads=1, deterministic=True)):
        found = {
            "precision": given.precision,
            "attention": [attention(sizes, dtype, given.rounds) for sizes in ATTENTION],
            "loss": [loss(sizes, dtype, given.rounds) for sizes in LOSS],
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
