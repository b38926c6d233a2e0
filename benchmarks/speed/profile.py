"""Where the time of one step goes, by kind of work, with our fast paths and without them."""

# M sequences of the micro-batch, T positions, N positions of a chunk, V vocabulary.

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from inheritune.machine.allocator import keep_freed_memory
from inheritune.machine.probe import choose, computing_as
from inheritune.training import gradient
from inheritune.training.optimiser import build_optimiser, set_dropout, set_learning_rate
from speed.contenders import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, build
from speed.shapes import Shape

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "fused attention": ("scaled_dot_product",),
    "optimiser and clipping": ("adam", "norm", "foreach"),
    "copies, fills, sums of gradients": ("copy", "fill", "zero", "aten::add_", "accumulategrad", "aten::mul"),
}
WARM_STEPS = 3


def kind_of(name: str, count: int, depth: int) -> str:
    """The kind of an operator by words in its name; compiled code is the layers' where it ran once for each of them."""
    if "CompiledFxGraph" in name:
        what = "layers" if count == depth else "loss"
        return f"compiled code of the {what}, beside its products"
    return next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")


def profile_step(shape: Shape, *, fast: bool) -> dict[str, Any]:
    """Milliseconds of CPU time of one compiled, deterministic step by kind; without the fast paths where not ``fast``:
    torch's fused attention, its own cross-entropy, chunks as large as they may be, memory given back."""
    if fast:
        keep_freed_memory()
    else:
        gradient.sum_cross_entropy = _plain_loss
        gradient.even_chunk = lambda total, most: min(total, most)
        gradient.narrow_output = lambda model, split: None
    model = build(shape).train()
    set_dropout(model, 0.0)
    choices = choose(
        hidden_size=shape.hidden_size, num_parameters=10**7, sequence_length=shape.sequence_length, num_tokens=10**9,
        batch_sequences=shape.micro_batch, precision="auto", compile=True, micro_batch=shape.micro_batch,
        deterministic=True,
    )  # fmt: skip
    if not fast:
        choices = type(choices).from_json({**choices.to_json(), "attention": "model"})
    rows = torch.randint(0, shape.vocabulary, (shape.micro_batch, shape.sequence_length + 1))
    with computing_as(choices):
        torch.utils.deterministic.fill_uninitialized_memory = not fast
        functions, choices = gradient.prepare_loss(
            model, choices, shape.vocabulary, sequence_length=shape.sequence_length
        )
        optimiser = build_optimiser(model, weight_decay=WEIGHT_DECAY, beta2=BETAS[1])
        set_learning_rate(optimiser, LEARNING_RATE)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            gradient.accumulate_gradient(functions, rows, choices)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()

        for _ in range(WARM_STEPS):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            step()
    kinds: Counter[str] = Counter()
    largest = []
    for event in seen.key_averages():
        kinds[kind_of(event.key, event.count, shape.depth)] += event.self_cpu_time_total / 1e3
        largest.append((event.self_cpu_time_total / 1e3, event.count, event.key[:80]))
    total = sum(kinds.values())
    return {
        "fast": fast,
        "precision": choices.precision,
        "milliseconds": {kind: round(value, 1) for kind, value in kinds.most_common()},
        "share": {kind: round(value / total, 3) for kind, value in kinds.most_common()},
        "largest": [list(each) for each in sorted(largest, reverse=True)[:12]],
    }


def _plain_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
