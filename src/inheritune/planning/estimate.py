"""Size of a stage before it runs: steps, disk and memory, from formulas that stand here in full."""

from dataclasses import dataclass

from inheritune.units import format_bytes, format_count

PROCESS_BYTES = 600_000_000
"""Python, torch and transformers, loaded."""

WEIGHT_AND_GRADIENT_BYTES = 8
"""Per parameter, both float32."""

ACTIVATION_FLOATS = 34
"""Values kept per token, layer and unit of width for the backward pass. Source: arXiv:2205.05198, eq. 1, bytes of
2-byte values without the attention matrix, halved to values and doubled for an MLP with a gate."""


@dataclass(frozen=True)
class Estimate:
    """What one stage needs."""

    parameters: int
    steps: int
    batch_tokens: int
    disk_bytes: int
    """Checkpoints kept, the one from before the cool-down, one being written, and the model."""
    memory_bytes: int
    """At the peak of a step, the process included; an estimate."""

    def line(self, label: str) -> str:
        """One line for the terminal."""
        return (
            f"{label} | {format_count(self.parameters)} parameters | {self.steps} steps of "
            f"{format_count(self.batch_tokens)} tokens | disk {format_bytes(self.disk_bytes)} | "
            f"memory about {format_bytes(self.memory_bytes)}"
        )


def estimate_stage(
    *,
    parameters: int,
    depth: int,
    hidden_size: int,
    steps: int,
    batch_tokens: int,
    micro_batch_tokens: int,
    keep_checkpoints: int,
    logits_at_once: int,
    moment_bytes: float = 8.0,
    activation_checkpointing: bool = False,
    teacher_parameters: int = 0,
    keeps_average: bool = False,
) -> Estimate:
    """What one stage needs.

    Args:
        parameters: of the model, a tied one counted once.
        depth: decoder layers.
        hidden_size: width.
        steps: optimiser steps.
        batch_tokens: tokens per step.
        micro_batch_tokens: tokens per forward and backward pass.
        keep_checkpoints: how many are kept.
        logits_at_once: elements of the largest logits tensor.
        moment_bytes: of the optimiser, per parameter.
        activation_checkpointing: whether one layer's activations are kept, and of the others their inputs alone.
        teacher_parameters: of the model that is distilled from, kept in float32.
        keeps_average: whether a weight average is kept, in memory, in checkpoints and as a model.
    """
    average_bytes = 4 * parameters if keeps_average else 0
    checkpoint_bytes = int((4 + moment_bytes) * parameters) + average_bytes
    kept_floats = ACTIVATION_FLOATS + depth if activation_checkpointing else ACTIVATION_FLOATS * depth
    activations = 4 * kept_floats * micro_batch_tokens * hidden_size
    return Estimate(
        parameters=parameters,
        steps=steps,
        batch_tokens=batch_tokens,
        disk_bytes=(keep_checkpoints + 2) * checkpoint_bytes + 4 * parameters + average_bytes,
        memory_bytes=PROCESS_BYTES
        + int((WEIGHT_AND_GRADIENT_BYTES + moment_bytes) * parameters)
        + activations
        + 3 * 4 * logits_at_once
        + 4 * teacher_parameters
        + average_bytes,
    )
