"""Where the reference that teaches goes depends on what training will need, and what does not fit is told."""

import pytest
import torch

from inheritune.errors import TrainingError
from inheritune.machine.probe import Choices
from inheritune.recipe import TrainRecipe
from inheritune.training import placement
from inheritune.training.moments import MOMENT_BYTES
from inheritune.training.placement import ROOM_FOR_A_STEP, place_teacher, placing


@pytest.mark.parametrize("moments", ["float32", "8bit"])
@pytest.mark.parametrize("average", [None, 1000])
@pytest.mark.parametrize(("short", "place"), [(0, "device"), (1, "offloaded")])
def test_a_teacher_stays_on_the_device_where_the_last_byte_fits(
    moments, average, short, place, build_model, monkeypatch
):
    child, teacher = build_model("llama"), build_model("llama", num_hidden_layers=6)
    child.get_input_embeddings().weight.requires_grad_(False)
    trained = sum(each.numel() for each in child.parameters() if each.requires_grad)
    training = round(trained * (4 + MOMENT_BYTES[moments] + (4 if average else 0)))
    needed = sum(each.nbytes for each in teacher.parameters()) + training + ROOM_FOR_A_STEP
    monkeypatch.setattr(placement, "free_bytes", lambda device: needed - short)
    monkeypatch.setattr(placement, "offload", lambda *given: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *given: self)
    choices = Choices("cuda", "float32", False, 1, threads=1, deterministic=True)
    recipe = TrainRecipe(moments=moments, average_half_life=average)
    assert place_teacher(teacher, child, choices, recipe).teacher == place


def test_another_error_is_not_taken_for_memory(build_model):
    with (
        pytest.raises(TrainingError, match=r"the child \(.*B\) does not fit"),
        placing("the child", build_model("llama")),
    ):
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(RuntimeError, match="shapes differ"), placing("the child", build_model("llama")):
        raise RuntimeError("shapes differ")
