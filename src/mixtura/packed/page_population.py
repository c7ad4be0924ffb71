"""Maps a packed file's pages ahead of their first use.

A first access to a page of a mapped file traps into the kernel, also if the file is in the page
cache, and the first prompt of a model accesses nearly every page. One call of `madvise` maps
many pages without a trap for each.
"""

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from functools import cache

from torch import Tensor

from mixtura.memory import free_bytes

# Pages mapped by one call, which cannot be interrupted.
_PART = 64 << 20
# From Linux's <asm-generic/mman-common.h>; since Linux 5.14.
_POPULATE_READ = 22


def populate(data: Tensor) -> threading.Thread | None:
    """Map the pages of a mapped file's bytes in a background thread, from the first to the last.

    Nothing is done, and None returned, if the bytes exceed the free memory or the system is not
    Linux. On kernels before 5.14 the thread ends without effect.
    """
    free = free_bytes()
    if _madvise() is None or (free is not None and data.nbytes > free):
        return None
    # A daemon thread does not delay the exit of a command.
    thread = threading.Thread(target=_map_pages, args=(data,), name="pages", daemon=True)
    thread.start()
    return thread


def _map_pages(data: Tensor) -> None:
    madvise = _madvise()
    assert madvise is not None, "populate has checked this"
    # madvise takes whole pages. The file's first page, whose beginning is its header, is included.
    begin = data.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = data.data_ptr() + data.nbytes
    for start in range(begin, end, _PART):
        if madvise(start, min(_PART, end - start), _POPULATE_READ) != 0:
            return


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The C library's madvise, which holds no lock of the interpreter; None except on Linux."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
