"""What this machine is best at, found once per stage by a short probe, recorded, and reused at every resume (law 5)."""

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

BFLOAT16_GAIN = 1.2
"""bfloat16 is chosen where its matrix products are at least this much faster than float32's."""

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of one micro-batch to start from; an out-of-memory error halves it."""

PEAK_SHAPES = {"cpu": ((1024, 1024, 1024), (4096, 256, 1024)), "cuda": ((8192, 8192, 8192),)}
"""(m, k, n) of products of which the fastest shows the peak: the same for every model, so that shares of it compare.
With AMX the second is more than twice as fast as the first."""

COMPILE_FROM_FLOPS = {"cpu": 3e13, "cuda": 1e16}
"""Automatic compilation starts here: below, compiling costs more than it saves (about 200 s on two cores). For a GPU it
is reckoned: compiling took 13 to 23 s of an H100, and makes some 250 TFLOP/s about 500."""

CUBLAS_WORKSPACE = ":4096:8"
"""cuBLAS is only repeatable with it. Source: the CUDA documentation of cuBLAS, results reproducibility."""

COMPILER_WARNINGS = (
    r"`torch\.jit",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"<class 'torch\.autograd\.function\.Function'> should not be instantiated",
    r"Dynamo detected a call to a `functools\.lru_cache`",
)
"""Said by torch's compiler about its own code while it compiles ours; nothing that a user could change."""

MOST_COMPILED = 2**10
"""Ways to compile one function at most. Torch gives up at 8 and computes further shapes as they come: slower, in more
memory, and in other bits than a resumed process, which counts from 0 again. A stage has few shapes."""


RECOMPUTES = frozenset({"cpu"})
"""Where a compiled layer keeps for the backward pass nothing that elementwise work gives again (products and sums over
rows are kept): a third less activations, at no cost that could be measured (docs/performance.md). On a GPU: not
measured."""


@dataclass(frozen=True)
class Choices:
    """How a stage computes. Fields are recorded in ``probe.json`` and never chosen twice for one stage."""

    device: str
    """"cpu" or "cuda"."""
    precision: str
    """"float32" or "bfloat16" (autocast; weights and moments stay float32)."""
    compile: bool
    """Whether the decoder blocks and the loss are compiled."""
    micro_batch: int
    """Sequences per forward and backward pass."""
    threads: int
    """CPU threads; sums depend on it."""
    deterministic: bool
    """Whether torch is held to deterministic algorithms."""
    loss_path: str = "split"
    """"split": body, then the head by chunks; "model": the model's own logits, where the split does not hold."""
    attention: str = "model"
    """"blocks": causal attention by blocks of queries; "model": what the model was loaded with."""
    activation_checkpointing: bool = False
    """Whether each layer is computed again in the backward pass instead of keeping its activations."""
    teacher: str | None = None
    """Where the weights of the reference's layers are while it teaches: "device", or "offloaded" to main memory."""
    matmul_gflops: dict[str, float] | None = None
    """What the probe measured, in GFLOP/s per precision; None where precision was given."""
    peak_gflops: float | None = None
    """Of the fastest product of ``PEAK_SHAPES`` in the precision chosen: what utilisation is a share of."""
    device_name: str | None = None
    """Of the GPU."""
    notes: tuple[str, ...] = ()
    """What was wished for and cannot be had here."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``probe.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Choices":
        """The inverse of ``to_json``."""
        return cls(**{**value, "notes": tuple(value["notes"])})

    def leaner(self) -> "Choices":
        """The same choices with less memory: half the micro-batch, or at one sequence activation checkpointing."""
        if self.micro_batch > 1:
            return replace(self, micro_batch=self.micro_batch // 2)
        return replace(self, activation_checkpointing=True)


def best_device() -> str:
    """ "cuda" where there is one, else "cpu".

    Everything that comes to a GPU asks here first, so this is where cuBLAS is told its workspace: it reads that once,
    at the first product, and a run that scores before it trains must compute as one that is resumed.
    """
    if not torch.cuda.is_available():
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    return "cuda"


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler, and Triton too on CUDA."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        return False
    return device == "cpu" or torch.utils._triton.has_triton()


def matmul_gflops(dtype: torch.dtype, device: str, shape: tuple[int, int, int], rounds: int = 5) -> float:
    """Speed of (m, k) @ (k, n) in GFLOP/s: the best of a few rounds after one to warm up."""
    m, k, n = shape
    a_MK, b_KN = (
        torch.linspace(-1, 1, rows * columns, device=device).view(rows, columns).to(dtype)
        for rows, columns in ((m, k), (k, n))
    )  # not all the same: a GPU is faster, since cooler, where no bit changes
    best_s = float("inf")
    for round_index in range(rounds + 1):
        begin = time.perf_counter()
        c_MN: Tensor = a_MK @ b_KN
        if device == "cuda":
            torch.cuda.synchronize()
        del c_MN
        if round_index:
            best_s = min(best_s, time.perf_counter() - begin)
    return 2 * m * k * n / best_s / 1e9


def matmul_peak_gflops(dtype: torch.dtype, device: str) -> float:
    """The machine's own peak: the fastest of some products large enough to reach it."""
    return max(matmul_gflops(dtype, device, shape) for shape in PEAK_SHAPES[device])


def choose(
    *,
    hidden_size: int,
    num_parameters: int,
    sequence_length: int,
    num_tokens: int,
    batch_sequences: int,
    precision: str,
    compile: str | bool,
    micro_batch: str | int,
    deterministic: bool,
    activation_checkpointing: bool = False,
) -> Choices:
    """Probe this machine for one stage.

    Args:
        hidden_size: width of the model; the probe times a product of that width.
        num_parameters: of the model.
        sequence_length: tokens per row.
        num_tokens: that the stage will train on.
        batch_sequences: rows per optimiser step; the micro-batch is never larger.
        precision: "auto", "float32" or "bfloat16".
        compile: "auto", True or False.
        micro_batch: "auto" or sequences.
        deterministic: hold torch to deterministic algorithms.
        activation_checkpointing: whether it is on from the start.
    """
    device = best_device()
    notes: list[str] = []
    measured: dict[str, float] | None = None
    if precision == "auto":
        shape = (MICRO_BATCH_TOKENS[device], hidden_size, 4 * hidden_size)
        measured = {
            name: round(matmul_gflops(dtype, device, shape), 1)
            for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items()
        }
        precision = "bfloat16" if measured["bfloat16"] >= BFLOAT16_GAIN * measured["float32"] else "float32"
    peak = matmul_peak_gflops(torch.float32 if precision == "float32" else torch.bfloat16, device)
    wanted = compile is True or (compile == "auto" and 6.0 * num_parameters * num_tokens >= COMPILE_FROM_FLOPS[device])
    if wanted and not has_compiler(device):
        notes.append("no C++ compiler found, so the model runs uncompiled, which is slower; install g++ to compile")
        wanted = False
    sequences = max(1, MICRO_BATCH_TOKENS[device] // sequence_length) if micro_batch == "auto" else int(micro_batch)
    return Choices(
        device=device,
        precision=precision,
        compile=wanted,
        micro_batch=min(sequences, batch_sequences),
        threads=torch.get_num_threads(),
        deterministic=deterministic,
        attention="blocks" if wanted and precision == "bfloat16" else "model",
        activation_checkpointing=activation_checkpointing,
        matmul_gflops=measured,
        peak_gflops=round(peak, 1),
        device_name=torch.cuda.get_device_name() if device == "cuda" else None,
        notes=tuple(notes),
    )


@contextmanager
def computing_as(choices: Choices) -> Iterator[None]:
    """Hold threads, determinism and what is compiled to the recorded choices inside the block, and put them back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.set_num_threads(choices.threads)
    torch.use_deterministic_algorithms(choices.deterministic)
    settings.fill_uninitialized_memory = False  # fills for a search after faults, and costs
    try:
        with warnings.catch_warnings(), compiling_as(choices) if choices.compile else nullcontext():
            for message in COMPILER_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        settings.fill_uninitialized_memory = fills


@contextmanager
def compiling_as(choices: Choices) -> Iterator[None]:
    """Hold torch's compiler to what a stage needs inside the block: every shape compiled, and little kept."""
    from torch._dynamo import config as dynamo  # here, since torch's compiler takes long to import
    from torch._functorch import config as functorch

    limits = {"recompile_limit": MOST_COMPILED, "accumulated_recompile_limit": MOST_COMPILED}
    recomputes = choices.device in RECOMPUTES
    with dynamo.patch(limits), functorch.patch(aggressive_recomputation=recomputes):
        yield


def autocast(choices: Choices) -> torch.autocast:
    """The precision context of one forward pass."""
    return torch.autocast(choices.device, dtype=torch.bfloat16, enabled=choices.precision == "bfloat16")
