"""What a process has used of memory, in bytes."""

import resource
import sys

import torch

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Words of errors without a class of their own."""


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: allocated device memory on CUDA, resident memory of the process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak(device: torch.device) -> None:
    """Begin a new peak on CUDA; the peak of a process's resident memory cannot be begun anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that this process could still have, what its allocator keeps for later included: the
    same at a fresh start as in a process that has trained something else before."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this error says that memory ran out, on an accelerator or on the CPU.

    The CPU allocator, the driver, Triton and cuBLAS have no exception class of their own; their text is the only sign.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
