"""What happens to memory that a step has freed: kept for the next step, given back where other work begins.

Every step and every batch of a validation frees tensors of tens of MiB and asks for the same again. glibc hands such
blocks back to the system at once, and each page is then faulted in and zeroed anew. What is kept instead has gaps of
the sizes of a step, into which a validation's blocks fit by chance only.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of mallopt's parameters. Source: malloc.h of glibc, mallopt(3)."""

KEPT_BYTES = 2**31 - 1
"""Free memory at the end of the heap beyond this is given back; the most that mallopt takes."""


def keep_freed_memory() -> bool:
    """Let glibc serve large blocks from its heap and keep up to 2 GiB of it; a matter of speed alone.

    Process-wide, so a program calls it once and a library does not.

    Returns:
        Whether it took; False where the C library is not glibc.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def give_back_freed_memory() -> None:
    """Hand every free page of glibc's heaps to the system, between two kinds of work; nothing elsewhere.

    Source: malloc_trim(3).
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library; None where it is another one, which has no mallopt that does anything."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
