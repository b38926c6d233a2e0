"""Save and resume: a checkpoint is a folder that exists wholly or not at all, and a pointer moved last.

Layout: ``checkpoints/step-00000123/{model,optimizer}.safetensors, state.json, manifest.json`` (with
``average.safetensors`` where a weight average is kept) and ``checkpoints/latest`` (text, for people). The manifest
holds the size and SHA-256 of every file; a folder whose manifest does not verify is passed over for the newest one that
does.
"""

import shutil
from collections.abc import Callable, Collection, Mapping
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
from inheritune.training.moments import MOMENT_BYTES, MomentFormat

MODEL, OPTIMISER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"


@dataclass(frozen=True)
class State:
    """Where a stage stands, beside weights and moments."""

    step: int
    """Optimiser steps done, those left out included."""
    tokens: int
    """Tokens trained on."""
    position: Position
    """The row that comes next."""
    elapsed_s: float
    """Seconds of training so far, all starts added."""
    recent_nats: tuple[float, ...] = ()
    """Losses of the last good steps, against which a spike is told."""
    setbacks: int = 0
    """Steps left out in a row, or goings back to the same place."""
    skipped: int = 0
    """Steps left out, in all."""
    num_steps: int = 0
    """Steps of the schedule that it was made under."""
    anchor: int = -1
    """Step of the checkpoint that a bad step goes back to; -1 where there is none."""
    rewound_tokens: int = 0
    """Tokens of steps that going back has undone; they were paid for."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``state.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "State":
        """The inverse of ``to_json``."""
        recent = tuple(value.get("recent_nats", ()))
        return cls(**{**value, "position": Position(**value["position"]), "recent_nats": recent})


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter (a tied one once) and every buffer that a state dict holds."""
    kept = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def checkpoint_bytes(model: nn.Module, *, with_average: bool, moments: MomentFormat = "float32") -> int:
    """What one checkpoint of this model takes on disk: weights, two moments each and, if kept, their average."""
    weights = sum(tensor.nbytes for tensor in _model_tensors(model).values())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weights + int(trained * (MOMENT_BYTES[moments] + (4 if with_average else 0)))


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: State,
    *,
    keep: int,
    held: Collection[int | None] = (),
    average: Mapping[str, Tensor] | None = None,
) -> Path:
    """Commit one checkpoint, move the pointer, then drop all but the newest ``keep`` and those of the steps ``held``.

    Raises:
        DiskError: the disk is full; what was there before is whole.
        TrainingError: it cannot be written for another reason.
    """
    target = folder / f"step-{state.step:08d}"
    if verifies(target):  # resumed here, and asked to stop before a step was made
        return target
    moments = {
        f"{moment}/{name}": tensor.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimiser.state
        for moment, tensor in optimiser.state[parameter].items()
    }
    moments["rng/torch"] = torch.get_rng_state()
    if next(model.parameters()).is_cuda:
        moments["rng/cuda"] = torch.cuda.get_rng_state()
    files = {
        MODEL: {name: tensor.detach().cpu().contiguous() for name, tensor in _model_tensors(model).items()},
        OPTIMISER: moments,
        **({AVERAGE: {name: tensor.cpu().contiguous() for name, tensor in average.items()}} if average else {}),
    }
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    runs.require_space(folder, needed, f"the checkpoint of step {state.step}")
    try:
        with runs.new_folder(target, needed) as new:
            for name, tensors in files.items():
                save_file(tensors, new / name)
            runs.write_json(new / "state.json", state.to_json())
            manifest = {
                path.name: {"bytes": path.stat().st_size, "sha256": runs.file_sha256(path)}
                for path in sorted(new.iterdir())
            }
            runs.write_json(new / "manifest.json", {"format": 1, "files": manifest})
        runs.write_text(folder / "latest", target.name + "\n")
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot save step {state.step} under {folder}: {error}. Mend that and run the same command: the "
            "checkpoint before this one is whole."
        ) from error
    others = [path for path in sorted(folder.glob("step-*")) if step_of(path) not in held]
    for old in others[:-keep]:
        runs.remove_folder(old)
    return target


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done in a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def verifies(checkpoint: Path) -> bool:
    """Whether every file is there with the size and hash that the manifest names."""
    try:
        files = runs.read_json(checkpoint / "manifest.json")["files"]
        return all(
            (checkpoint / name).stat().st_size == entry["bytes"]
            and runs.file_sha256(checkpoint / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_checkpoint(folder: Path, tell: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none to start from.

    What a kill left half-written, and damaged checkpoints newer than the one found, are deleted.

    Args:
        folder: ``checkpoints`` of a stage.
        tell: called with a sentence for every damaged checkpoint that is passed over.

    Raises:
        TrainingError: there are checkpoints, and none of them verifies.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True)
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    for candidate in candidates:
        if verifies(candidate):
            for damaged in candidates[: candidates.index(candidate)]:
                tell(f"{damaged} is damaged and was deleted; {candidate.name} is whole")
                runs.remove_folder(damaged)
            return candidate
    if candidates:
        raise TrainingError(
            f"no checkpoint under {folder} is intact ({len(candidates)} looked at, newest {candidates[0].name}). "
            f"Delete {folder} to start this stage from its beginning."
        )
    return None


def drop_after(folder: Path, step: int, *, unless_of: int | None = None) -> None:
    """Delete the checkpoints beyond a step, newest first, but those made under a schedule of ``unless_of`` steps."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        if step_of(checkpoint) > step and (unless_of is None or _num_steps(checkpoint) not in (None, unless_of)):
            runs.remove_folder(checkpoint)
    if left := sorted(folder.glob("step-*")):
        runs.write_text(folder / "latest", left[-1].name + "\n")


def _num_steps(checkpoint: Path) -> int | None:
    """Steps of the schedule that a checkpoint was made under; None where that cannot be read."""
    try:
        return read_state(checkpoint).num_steps
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: passed over and told of where a checkpoint is looked for


def require_whole(checkpoint: Path) -> None:
    """Refuse to build on a checkpoint of another stage that is damaged or gone.

    Raises:
        TrainingError: it is.
    """
    if not verifies(checkpoint):
        raise TrainingError(
            f"{checkpoint}, from which training was to go on, is damaged or gone, and no other holds this state. "
            "Restore it, start over with --fresh, or choose another run_dir."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU.

    Raises:
        TrainingError: the file cannot be read.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot read {path}: {error}. Delete {path.parent} to fall back to the one before."
        ) from error
    return tensors


def read_state(checkpoint: Path) -> State:
    """Where the stage stood."""
    return State.from_json(runs.read_json(checkpoint / "state.json"))


def load_moments(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give every parameter that the checkpoint knows by name and shape its moments; gives all that the file holds."""
    moments = read_tensors(checkpoint / OPTIMISER)
    kinds = sorted({key.partition("/")[0] for key in moments} - {"rng"})
    for name, parameter in model.named_parameters():
        known = moments.get(f"exp_avg/{name}")
        if parameter.requires_grad and known is not None and known.shape == parameter.shape:
            found = {kind: moments[key] for kind in kinds if (key := f"{kind}/{name}") in moments}
            optimiser.state[parameter] = {kind: tensor.to(parameter.device) for kind, tensor in found.items()}
    return moments


def load_checkpoint(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> State:
    """Put weights, moments and random state back, bit for bit.

    Raises:
        TrainingError: the checkpoint belongs to a model with other tensors.
    """
    weights = read_tensors(checkpoint / MODEL)
    tensors = _model_tensors(model)
    if {name: tensor.shape for name, tensor in tensors.items()} != {n: t.shape for n, t in weights.items()}:
        raise TrainingError(
            f"{checkpoint} holds other tensors than the model it should resume. "
            "Delete the stage's folder, or choose another run_dir."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
    optimiser.state.clear()
    moments = load_moments(checkpoint, model, optimiser)
    torch.set_rng_state(moments["rng/torch"])
    if "rng/cuda" in moments:
        torch.cuda.set_rng_state(moments["rng/cuda"])
    return read_state(checkpoint)
