"""What happens to memory that a step has freed: kept for the next step, given back where other work begins.

Every step and every batch of a validation frees tensors of tens of MiB and asks for the same again. glibc hands such
blocks back to the system at once, and each page is then faulted in and zeroed anew. What is kept instead has gaps of
the sizes of a step, into which a validation's blocks fit by chance only.

They do not even fit into their own: torch asks for blocks at multiples of 64 bytes, which glibc cuts out of somewhat
larger ones, and before version 2.39 the cuttings do not grow together with the block again when it is freed. A step
asks for the same blocks again and again and comes to rest; batches of many lengths, with logits of 64 MiB, do not.

Source: bug 30723 of glibc, merging of remainders in memalign.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Names of mallopt's parameters. Source: malloc.h of glibc, mallopt(3)."""

MOST_MAPPED = 65536
"""Blocks that may be mapped each by itself: glibc's default for ``M_MMAP_MAX``."""

LARGE_BYTES = 2**25
"""A block from here on is mapped by itself where freed memory is given back; the most that mallopt takes."""

KEPT_BYTES = 2**31 - 1
"""Free memory at the end of the heap beyond this is given back; the most that mallopt takes."""

_is_kept = False
"""Whether ``keep_freed_memory`` took, in this process."""


def keep_freed_memory() -> bool:
    """Let glibc serve large blocks from its heap and keep up to 2 GiB of it; a matter of speed alone.

    Process-wide, so a program calls it once and a library does not.

    Returns:
        Whether it took; False where the C library is not glibc.
    """
    global _is_kept
    libc = _glibc()
    _is_kept = libc is not None and bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
    return _is_kept


@contextmanager
def freed_memory_given_back() -> Iterator[None]:
    """For other work than steps: every free page goes to the system before and after, and inside the largest blocks do
    as soon as they are freed. Does nothing where the C library is not glibc.

    Source: malloc_trim(3), mallopt(3).
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.malloc_trim(0)
    if _is_kept:
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_MMAP_MAX, MOST_MAPPED)
    try:
        yield
    finally:
        if _is_kept:
            libc.mallopt(M_MMAP_MAX, 0)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library; None where it is another one, which has no mallopt that does anything."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
