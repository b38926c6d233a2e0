"""Who trains: each of these runs in a process of its own and tells what every step took."""

# M sequences of the micro-batch, T positions, V vocabulary.

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inheritune.machine.allocator import keep_freed_memory
from inheritune.machine.memory import peak_memory_bytes
from inheritune.machine.probe import best_device
from speed.shapes import Shape

LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0
PREPARED_TOKENS = 1_500_000


def prepare_text(folder: Path) -> Path:
    """Shards of the standard library's source files in the demo's tokenizer; the same ids for every contender."""
    import inheritune
    from inheritune.data.standard_library import write_standard_library

    text, shards = folder / "text.jsonl", folder / "shards"
    if not shards.exists():
        write_standard_library(text)
        tokenizer = Path(inheritune.__file__).parent / "recipes" / "demo_reference"
        inheritune.prepare(
            str(text), shards, tokenizer=tokenizer, token_budget=PREPARED_TOKENS, min_documents=8, document_bytes=2048
        )
    return shards


def some_rows(shards: Path, shape: Shape, steps: int) -> Tensor:
    """Rows (steps x M, T + 1) from the prepared text."""
    ids = np.concatenate([np.fromfile(path, dtype="<u2") for path in sorted(shards.rglob("train-*.bin"))])
    count, length = steps * shape.micro_batches * shape.micro_batch, shape.sequence_length
    windows = np.resize(ids, count * length + 1)
    rows = np.stack([windows[row * length : row * length + length + 1] for row in range(count)])
    return torch.from_numpy(rows.astype(np.int64))


def build(shape: Shape) -> Any:
    """A Hugging Face model with random weights, float32, on the device that trains."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = shape.config()
    with torch.device(best_device()):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


def told(
    precision: str, step_s: list[float], first_s: float, losses: list[float], peak: int, **more: Any
) -> dict[str, Any]:
    """The figures of one process."""
    if not losses[-1] < losses[0]:
        raise SystemExit(f"the loss did not fall: {losses}")
    return {
        "precision": precision,
        "step_s": step_s,
        "first_step_s": first_s,
        "losses": losses,
        "peak_memory_bytes": peak,
        **more,
    }


def ours(shape: Shape, steps: int, shards: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """``inheritune.train`` as the command line runs it: what ships, with the time between its steps.

    A GPU's models are saved without checkpoints: 20 GB each, written between no two steps that are timed.
    """
    import inheritune

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        on_gpu = best_device() == "cuda"
        built = build(shape).to(torch.bfloat16 if on_gpu else torch.float32)
        built.save_pretrained(folder / "model")
        del built
        kept = patch("inheritune.training.learner.save_checkpoint") if on_gpu else nullcontext()
        with kept:
            inheritune.train(
                folder / "model",
                shards,
                folder / "out",
                recipe={
                    "batch_tokens": shape.step_tokens,
                    "micro_batch": shape.micro_batch,
                    "compile": True,
                    "peak_lr": LEARNING_RATE,
                    "validations": 1,
                    **recipe,
                },
                sequence_length=shape.sequence_length,
                token_budget=min(steps * shape.step_tokens, PREPARED_TOKENS // 2),
                total_tokens=steps * shape.step_tokens,
            )
        lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
        choices = json.loads((folder / "out" / "probe.json").read_text())
    trained = [line for line in lines if line["kind"] == "train"]
    ends = [line["elapsed_s"] for line in trained]
    between = [after - before for before, after in pairwise(ends)]
    first_s = shape.step_tokens / trained[0]["tokens_per_s"]
    losses = [line["loss_nats"] for line in trained]
    return told(
        choices["precision"], between, first_s, losses, peak_memory_bytes(torch.device(best_device())), choices=choices
    )


def growth_rounds(shape: Shape, shards: Path, depths: list[int]) -> dict[str, Any]:
    """Seconds that the first step of a stage takes beyond a later one, depth after depth in this process."""
    found = {}
    for depth in depths:
        told_of_depth = ours(replace(shape, depth=depth), 6, shards, {})
        found[str(depth)] = told_of_depth["first_step_s"] - statistics.median(told_of_depth["step_s"])
    return {"first_step_more_s": found}


def train_loop(step: Callable[[Tensor], float], rows: Tensor, shape: Shape, precision: str) -> dict[str, Any]:
    """Time each call of ``step`` on the rows of one step after the other."""
    device = best_device()
    seconds, losses = [], []
    for batch in rows.split(shape.micro_batches * shape.micro_batch):
        begin = time.perf_counter()
        losses.append(step(batch.to(device)))
        seconds.append(time.perf_counter() - begin)
    return told(precision, seconds[1:], seconds[0], losses, peak_memory_bytes(torch.device(device)))


def plain(
    shape: Shape, steps: int, shards: Path, *, bfloat16: bool, compiled: bool, memory_kept: bool = False
) -> dict[str, Any]:
    """A simple loop: the Hugging Face model and its loss compiled as one, autocast, fused AdamW."""
    if memory_kept:
        keep_freed_memory()
    device = best_device()
    model = build(shape).to(device).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )

    def mean_loss(rows_MT: Tensor) -> Tensor:
        logits_MTV = model(input_ids=rows_MT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits_MTV.float().flatten(0, 1), rows_MT[:, 1:].flatten())

    loss_of = torch.compile(mean_loss) if compiled else mean_loss

    def step(rows_BT: Tensor) -> float:
        optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for rows_MT in rows_BT.split(shape.micro_batch):
            with torch.autocast(device, dtype=torch.bfloat16) if bfloat16 else nullcontext():
                loss = loss_of(rows_MT)
            (loss / shape.micro_batches).backward()
            total += loss.detach() / shape.micro_batches
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        return total.item()

    return train_loop(step, some_rows(shards, shape, steps), shape, "bfloat16" if bfloat16 else "float32")


def trainer(shape: Shape, steps: int, shards: Path, *, memory_kept: bool = False, **flags: Any) -> dict[str, Any]:
    """``transformers.Trainer`` with some flags, with the allocator as it is or set as our command line sets it."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    if memory_kept:
        keep_freed_memory()
    rows = some_rows(shards, shape, steps)[:, :-1]  # the Trainer's models shift the labels themselves
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            model=build(shape),
            args=TrainingArguments(
                output_dir=folder, per_device_train_batch_size=shape.micro_batch, max_steps=steps,
                gradient_accumulation_steps=shape.micro_batches, save_strategy="no",
                report_to="none", disable_tqdm=True, logging_steps=1, learning_rate=LEARNING_RATE, max_grad_norm=CLIP,
                weight_decay=WEIGHT_DECAY, dataloader_pin_memory=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(), **flags,
            ),
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            callbacks=[Clock()],
        )  # fmt: skip
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    seconds = [after - before for before, after in pairwise(ends)]
    precision = "bfloat16" if flags.get("bf16") else "float32"
    return told(precision, seconds[1:], seconds[0], losses, peak_memory_bytes(torch.device(best_device())))


def litgpt(shape: Shape, steps: int, shards: Path, *, precision: str, compiled: bool) -> dict[str, Any]:
    """litgpt's model under Fabric, as its ``pretrain`` puts them together, but for fused AdamW and a loss over all
    logits at once, where ``pretrain`` takes them 128 positions at a time."""
    import lightning
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    is_gpt2 = shape.family == "gpt2"
    like_gpt2 = {
        "bias": True, "norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "rotary_percentage": 0.0,
    }  # fmt: skip
    like_llama = {
        "bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rotary_percentage": 1.0,
    }  # fmt: skip
    config = Config(
        n_layer=shape.depth, n_embd=shape.hidden_size, n_head=shape.heads, intermediate_size=shape.inner_size,
        padded_vocab_size=shape.vocabulary, vocab_size=shape.vocabulary, block_size=shape.sequence_length,
        parallel_residual=False, lm_head_bias=False, **(like_gpt2 if is_gpt2 else like_llama),
    )  # fmt: skip
    fabric = lightning.Fabric(accelerator=best_device(), devices=1, precision=precision)
    lightning.seed_everything(0, verbose=False)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    if shape.tied:
        model.transformer.wte.weight = model.lm_head.weight
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimiser = fabric.setup_optimizers(
        torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    )

    def step(rows_BT: Tensor) -> float:
        total = torch.zeros((), device=rows_BT.device)
        for rows_MT in rows_BT.split(shape.micro_batch):
            logits_MTV = model(rows_MT[:, :-1].contiguous())
            loss = chunked_cross_entropy(logits_MTV, rows_MT[:, 1:].contiguous(), chunk_size=0)
            fabric.backward(loss / shape.micro_batches)
            total += loss.detach() / shape.micro_batches
        fabric.clip_gradients(model, optimiser, max_norm=CLIP)
        optimiser.step()
        optimiser.zero_grad()
        return float(total)

    return train_loop(step, some_rows(shards, shape, steps), shape, "bfloat16" if "bf16" in precision else "float32")


BEST_FLAGS = {"bf16": True, "torch_compile": True, "optim": "adamw_torch_fused"}
CONTENDERS: dict[str, Callable[[Shape, int, Path], dict[str, Any]]] = {
    "ours": lambda *given: ours(*given, {}),
    "ours, not deterministic": lambda *given: ours(*given, {"deterministic": False}),
    "ours, float32": lambda *given: ours(*given, {"precision": "float32"}),
    "ours, micro-batch found": lambda *given: ours(*given, {"micro_batch": "auto"}),
    "ours, micro-batch 8": lambda *given: ours(*given, {"micro_batch": 8}),
    "ours, for 24 GB": lambda *given: ours(
        *given, {"micro_batch": 1, "moments": "8bit", "activation_checkpointing": True}
    ),
    "ours, for 48 GB": lambda *given: ours(*given, {"micro_batch": 2}),
    "plain loop, bfloat16, compiled": lambda *given: plain(*given, bfloat16=True, compiled=True),
    "plain loop, bfloat16, compiled, freed memory kept": lambda *given: plain(
        *given, bfloat16=True, compiled=True, memory_kept=True
    ),
    "Trainer, defaults": lambda *given: trainer(*given),
    "Trainer, best flags": lambda *given: trainer(*given, **BEST_FLAGS),
    "Trainer, best flags, freed memory kept": lambda *given: trainer(*given, memory_kept=True, **BEST_FLAGS),
    "litgpt, bf16-mixed, compiled": lambda *given: litgpt(*given, precision="bf16-mixed", compiled=True),
    "litgpt, bf16-true, compiled": lambda *given: litgpt(*given, precision="bf16-true", compiled=True),
}
"""Name to a training of so many steps."""

BY_NAME_ALONE = {"ours, micro-batch found", "ours, micro-batch 8", "ours, for 24 GB", "ours, for 48 GB"}
"""Run only where ``--only`` names them: other micro-batches than the peers', settings for a GPU."""

NEEDS = {"Trainer": ("accelerate",), "litgpt": ("litgpt", "lightning")}


def missing(name: str) -> str | None:
    """The first package that a contender needs and that is not installed."""
    needed = NEEDS.get(name.split(",")[0], ())
    return next((package for package in needed if find_spec(package) is None), None)
