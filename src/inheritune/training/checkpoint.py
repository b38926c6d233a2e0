"""Save and resume: a checkpoint is a folder that exists wholly or not at all, and a pointer moved last.

Layout: ``checkpoints/step-00000123/{model,optimizer}.safetensors, state.json, manifest.json`` and
``checkpoints/latest`` (text, for people). The manifest holds the size and SHA-256 of every file; a folder whose
manifest does not verify is passed over for the newest one that does.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inheritune import runs
from inheritune.data.batches import Position
from inheritune.errors import TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class State:
    """Where a stage stands, beside weights and moments."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Tokens trained on."""
    position: Position
    """The row that comes next."""
    elapsed_s: float
    """Seconds of training so far, all starts added."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``state.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "State":
        """The inverse of ``to_json``."""
        return cls(**{**value, "position": Position(**value["position"])})


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter (a tied one once) and every buffer that a state dict holds."""
    kept = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def save_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: State, *, keep: int
) -> Path:
    """Commit one checkpoint, move the pointer, then drop all but the newest ``keep``."""
    target = folder / f"step-{state.step:08d}"
    if verifies(target):  # resumed here, and asked to stop before a step was made
        return target
    moments = {
        f"{moment}/{name}": optimiser.state[parameter][moment].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for moment in MOMENTS
        if parameter in optimiser.state
    }
    moments["rng/torch"] = torch.get_rng_state()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _model_tensors(model).items()}
    try:
        with runs.new_folder(target) as new:
            save_file(weights, new / "model.safetensors")
            save_file(moments, new / "optimizer.safetensors")
            runs.write_json(new / "state.json", state.to_json())
            manifest = {
                path.name: {"bytes": path.stat().st_size, "sha256": runs.file_sha256(path)}
                for path in sorted(new.iterdir())
            }
            runs.write_json(new / "manifest.json", {"format": 1, "files": manifest})
        runs.write_text(folder / "latest", target.name + "\n")
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in [*weights.values(), *moments.values()])
        raise TrainingError(
            f"cannot save step {state.step} under {folder}: {error}. A checkpoint needs {needed} bytes; "
            "free some space and run the same command: the checkpoint before this one is whole."
        ) from error
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def verifies(checkpoint: Path) -> bool:
    """Whether every file is there with the size and hash that the manifest names."""
    try:
        files = runs.read_json(checkpoint / "manifest.json")["files"]
        return all(
            (checkpoint / name).stat().st_size == entry["bytes"]
            and runs.file_sha256(checkpoint / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, json.JSONDecodeError, KeyError):
        return False


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none to start from.

    What a kill left half-written, and damaged checkpoints newer than the one found, are deleted.

    Raises:
        TrainingError: there are checkpoints, and none of them verifies.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True)
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    for candidate in candidates:
        if verifies(candidate):
            for damaged in candidates[: candidates.index(candidate)]:
                shutil.rmtree(damaged)
            return candidate
    if candidates:
        raise TrainingError(
            f"no checkpoint under {folder} is intact ({len(candidates)} looked at, newest {candidates[0].name}). "
            f"Delete {folder} to start this stage from its beginning."
        )
    return None


def load_checkpoint(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> State:
    """Put weights, moments and random state back, bit for bit.

    Raises:
        TrainingError: the checkpoint belongs to a model with other tensors.
    """
    try:
        weights = load_file(checkpoint / "model.safetensors")
        moments = load_file(checkpoint / "optimizer.safetensors")
    except SafetensorError as error:
        raise TrainingError(f"cannot read {checkpoint}: {error}. Delete it to fall back to the one before.") from error
    tensors = _model_tensors(model)
    if {name: tensor.shape for name, tensor in tensors.items()} != {n: t.shape for n, t in weights.items()}:
        raise TrainingError(
            f"{checkpoint} holds other tensors than the model it should resume. "
            "Delete the stage's folder, or choose another run_dir."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
    for name, parameter in model.named_parameters():
        if f"step/{name}" in moments:
            optimiser.state[parameter] = {
                moment: moments[f"{moment}/{name}"].to(parameter.device) for moment in MOMENTS
            }
    torch.set_rng_state(moments["rng/torch"])
    return State.from_json(runs.read_json(checkpoint / "state.json"))
