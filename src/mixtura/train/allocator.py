"""Keeps freed memory for the next step, where glibc would return its pages to the system."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; returns True where that took effect (Linux with glibc).

    By default glibc maps every large block anew and unmaps it when freed, so each step of training
    on a CPU zeroes all its activations and gradients: up to half of a step (docs/lab-notes.md). The
    process then stays at its largest size.
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
