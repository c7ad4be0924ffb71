"""Makes glibc keep freed memory for the next step, and not return its pages to the system."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; return True if that took effect (on Linux with glibc).

    By default glibc maps new pages for every large block, and unmaps them when the block is freed.
    The system zeroes new pages. On a CPU, zeroing the memory of all activations and gradients takes
    up to half of each training step (docs/lab-notes.md). With kept memory the process never becomes
    smaller than its largest size so far.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        # Another C library, such as musl, has no mallopt.
        return False
    settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD)]
    return all(mallopt(name, value) == 1 for name, value in settings)
