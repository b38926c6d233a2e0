"""What training puts where: the child and its average on the device, the reference that teaches there if it fits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from inheritune.errors import TrainingError
from inheritune.machine.memory import free_bytes, is_out_of_memory
from inheritune.machine.offload import narrow_matrices, offload
from inheritune.machine.probe import Choices
from inheritune.recipe import TrainRecipe
from inheritune.surgery.anatomy import layer_modules
from inheritune.training.moments import MOMENT_BYTES
from inheritune.units import format_bytes

ROOM_FOR_A_STEP = 4 * 2**30
"""Device memory left for activations where the reference teaches beside the child; more is found by micro-batches."""


def place_teacher(teacher: nn.Module, model: nn.Module, choices: Choices, recipe: TrainRecipe) -> Choices:
    """Put the reference where it teaches from: on the device, if it fits beside the child, which is there already, and
    what the child's training will need."""
    device = torch.device(choices.device)
    teacher.eval().requires_grad_(False)
    if choices.precision == "bfloat16":
        narrow_matrices(teacher)
    if choices.teacher is None:
        needed = sum(each.nbytes for each in teacher.parameters()) + _bytes_to_train(model, recipe)
        fits = device.type != "cuda" or needed + ROOM_FOR_A_STEP <= free_bytes(device)
        choices = replace(choices, teacher="device" if fits else "offloaded")
    if choices.teacher == "offloaded":
        offload(teacher, list(layer_modules(teacher)), device)
    else:
        teacher.to(device)
    return choices


@contextmanager
def placing(what: str, model: nn.Module) -> Iterator[None]:
    """Tell what does not fit into memory, and what it needs.

    Raises:
        TrainingError: memory runs out inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = format_bytes(sum(each.nbytes for each in model.parameters()))
        raise TrainingError(f"{what} ({size}) does not fit into memory. Use a machine with more of it.") from error


def _bytes_to_train(model: nn.Module, recipe: TrainRecipe) -> int:
    """Gradients, moments and the average of a model's trained weights."""
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return round(trained * (4 + MOMENT_BYTES[recipe.moments] + (4 if recipe.average_half_life else 0)))
