"""What happens to memory that a step has freed: kept for the next step, not given back to the system.

Every step and every batch of a validation frees tensors of tens of MiB and asks for the same again. glibc hands such
blocks back to the system at once, and each page is then faulted in and zeroed anew.
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
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl and others have no mallopt that does anything
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
