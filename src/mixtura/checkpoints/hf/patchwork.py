"""Tensors put together from parts of files by the memory map, without a copy.

A file holds experts one by one, between other tensors; ours are stacked. Whole pages of the file
are mapped into the stacked tensor, and only pages where one part ends and the next begins are
copied. A write stays private to this process.
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

# Linux allows 65,530 mappings a process by default; other code needs some of them.
MOST_MAPPINGS = 40_000
_SHARE_FIXED = MAP_PRIVATE | 0x10
_READ_WRITE = PROT_READ | PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file; `at` is their place, counted from the tensor's first byte."""

    file: Path
    offset: int
    size: int
    at: int


class Patchwork:
    """Maps tensors until `MOST_MAPPINGS` are used, and copies after that."""

    def __init__(self) -> None:
        self.mapped = 0

    def tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, parts: Sequence[FilePart]
    ) -> Tensor:
        """The tensor of these bytes; the parts must fill it, each byte once."""
        size = prod(shape) * dtype.itemsize
        assert sum(part.size for part in parts) == size, "the parts fill the tensor"
        # The tensor starts where the first part does within a page, so that their pages coincide.
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
    """The C library's mmap, since Python's takes no address; None except on Linux."""
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
