"""Maps parts of files into the memory of one tensor, instead of copying them.

A checkpoint's file holds each expert as a tensor of its own, while Mixtura stacks the experts of a
layer. Whole pages of the file are mapped into the stacked tensor. Only the pages where one expert
ends and the next begins are copied. A write to the tensor does not change the file.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mixtura.posix import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE

# Linux allows a process 65,530 mappings by default, and other code needs some of them.
MOST_MAPPINGS = 40_000
_SHARE_FIXED = MAP_PRIVATE | 0x10
_READ_WRITE = PROT_READ | PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class FilePart:
    """`size` bytes of a file from `offset` on, which fill the tensor's bytes from `at` on."""

    file: Path
    offset: int
    size: int
    at: int


class Patchwork:
    """Maps parts of files until there are `MOST_MAPPINGS` mappings, and copies all later parts."""

    def __init__(self) -> None:
        self.mapped = 0

    def tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, parts: Sequence[FilePart]
    ) -> Tensor:
        """Build a tensor from parts of files; the parts must fill each byte of the tensor once."""
        size = prod(shape) * dtype.itemsize
        assert sum(part.size for part in parts) == size, "the parts fill the tensor"
        # Only whole pages can be mapped. So the tensor starts at the same offset within a page as
        # its first part does in the file.
        shift = parts[0].offset % mmap.PAGESIZE
        region = mmap.mmap(-1, shift + size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(region))
        # One open file at a time: a checkpoint may have more shards than a process may open files.
        for file, own in groupby(parts, lambda part: part.file):
            with file.open("rb") as opened:
                for part in own:
                    self._place(region, base, shift + part.at, part, opened.fileno())
        whole = torch.frombuffer(region, dtype=torch.uint8, offset=shift, count=size)
        return whole.view(dtype).view(shape)

    def _place(self, region: mmap.mmap, base: int, start: int, part: FilePart, file: int) -> None:
        end, page = start + part.size, mmap.PAGESIZE
        first, last = -(-start // page) * page, end // page * page
        fits = (part.offset - start) % page == 0 and first < last
        if not fits or self.mapped >= MOST_MAPPINGS or _mmap() is None:
            _copy(region, start, end, file, part.offset)
            return
        offset = part.offset + first - start
        _map_fixed(base + first, last - first, file, offset)
        self.mapped += 1
        _copy(region, start, first, file, part.offset)
        _copy(region, last, end, file, part.offset + last - start)


def _copy(region: mmap.mmap, start: int, end: int, file: int, offset: int) -> None:
    view = memoryview(region)
    while start < end:
        read = os.preadv(file, [view[start:end]], offset)
        assert read > 0, "the file was as long as its header says when it was opened"
        start, offset = start + read, offset + read


@cache
def _mmap() -> "ctypes._NamedFuncPointer | None":
    """The C library's mmap, because Python's mmap takes no address; None except on Linux."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return function


def _map_fixed(address: int, size: int, file: int, offset: int) -> None:
    function = _mmap()
    assert function is not None, "checked by _place"
    got = function(address, size, _READ_WRITE, _SHARE_FIXED, file, offset)
    if got == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
