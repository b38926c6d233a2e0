import json
import os

import pytest
import torch

from inheritune.machine import probe
from inheritune.machine.memory import free_bytes, is_out_of_memory, peak_memory_bytes
from inheritune.machine.probe import Choices, choose, computing_as, has_compiler

SMALL = {
    "hidden_size": 16, "num_parameters": 1000, "sequence_length": 32, "num_tokens": 1000, "batch_sequences": 4,
    "precision": "auto", "compile": "auto", "micro_batch": "auto", "deterministic": True,
}  # fmt: skip


@pytest.mark.parametrize(("gain", "precision"), [(1.0, "float32"), (1.19, "float32"), (1.21, "bfloat16")])
def test_bfloat16_is_taken_only_where_it_is_faster(gain, precision, monkeypatch):
    speed = {torch.float32: 100.0, torch.bfloat16: 100.0 * gain}
    monkeypatch.setattr(probe, "matmul_gflops", lambda dtype, device, shape: speed[dtype])
    assert choose(**SMALL).precision == precision


def test_where_the_precision_is_given_only_its_peak_is_measured(monkeypatch):
    probed = []

    def gflops(dtype, device, shape):
        probed.append((dtype, shape))
        return 50.0 + len(probed)

    monkeypatch.setattr(probe, "matmul_gflops", gflops)
    chosen = choose(**{**SMALL, "precision": "float32"})
    shapes = probe.PEAK_SHAPES[chosen.device]
    assert (chosen.precision, chosen.peak_gflops) == ("float32", 50.0 + len(shapes))
    assert probed == [(torch.float32, shape) for shape in shapes]  # the peak, which every run is measured by


def test_the_peak_is_the_same_whatever_the_model(monkeypatch):
    monkeypatch.setattr(probe, "matmul_gflops", lambda dtype, device, shape: 900.0 if 16 in shape else 50.0)
    assert choose(**SMALL).peak_gflops == 50.0


def test_cublas_is_told_its_workspace_by_whoever_asks_for_a_gpu_first(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe.best_device() == "cpu"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert probe.best_device() == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == probe.CUBLAS_WORKSPACE
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert probe.best_device() == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_memory_that_the_allocator_keeps_for_later_is_free(monkeypatch):
    """What is free does not depend on what the process has done before: 60 of 80 in the first, 60 in the second."""
    device = torch.device("cuda")
    for driver, reserved, allocated in ((60, 20, 20), (5, 75, 20)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=driver: (free, 80))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device, count=reserved: count)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device, count=allocated: count)
        assert free_bytes(device) == 60


@pytest.mark.parametrize(
    ("said", "is_memory"),
    [
        ("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_memory_that_ran_out_is_known_by_what_is_said(said, is_memory):
    assert is_out_of_memory(RuntimeError(said)) == is_memory


def test_a_short_stage_is_not_compiled_and_a_long_one_is():
    assert not choose(**SMALL).compile
    assert choose(**{**SMALL, "num_parameters": 10**9, "num_tokens": 10**9}).compile == has_compiler("cpu")


def test_without_a_compiler_the_model_runs_uncompiled_and_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen = choose(**{**SMALL, "compile": True})
    assert not chosen.compile
    assert "install g++" in chosen.notes[0]


def test_the_micro_batch_is_never_larger_than_the_batch():
    assert choose(**SMALL).micro_batch == 4
    first = probe.MICRO_BATCH_TOKENS[probe.best_device()] // 32
    assert choose(**{**SMALL, "batch_sequences": 4096}).micro_batch == first


def test_choices_read_back_from_their_json():
    chosen = choose(**SMALL)
    assert Choices.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


def test_threads_and_determinism_hold_inside_and_are_put_back():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with computing_as(Choices("cpu", "float32", False, 1, threads=1, deterministic=True)):
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_running_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert peak_memory_bytes(torch.device("cpu")) > 10**7
