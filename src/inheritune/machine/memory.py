"""What a process has used of memory, in bytes."""

import resource
import sys

import torch


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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this error says that memory ran out, on an accelerator or on the CPU.

    The CPU allocator has no exception class of its own; its text is the only sign.
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
