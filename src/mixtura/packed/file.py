"""Reads a file of packed weights through a memory map, and writes such a file tensor by tensor.

E experts.
"""

import hashlib
import mmap
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import torch
from torch import Tensor

from mixtura.integrity import Check, claim_of_bytes, named
from mixtura.packed.header import PLAIN, Entry, Header, encoded, read_header
from mixtura.packed.page_population import populate

# The largest number of parts that wait to be written. Packing needs memory for them, and for the
# part that is being made.
_WAITING = 2


def pack_again() -> str:
    """What a user can do about a damaged file; error messages end with it."""
    return "copy the file again, or pack the model again"


class PackedFile:
    """A mapped file of packed weights: bytes are read when they are first used, and are not copied.

    The file's tensors must not be written to. Raises CheckpointError for a truncated file, for
    another format version, and for a damaged header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self._begin = read_header(path)
        self._data = _mapped(path)[self._begin :]
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in self.header.tensors}

    def populate(self) -> Thread | None:
        """Map all pages in the background, so that a first prompt does not wait for them.

        See `page_population.populate`.
        """
        return populate(self._data)

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a plain tensor."""
        stored_as = self.entries[name].format
        return PLAIN[stored_as]

    def read(self, name: str) -> Tensor:
        """A view of one tensor of the file.

        It is a plain tensor in its own shape, the flat tiles of a matrix, or experts of shape (E,
        bytes of one expert).
        """
        entry = self.entries[name]
        raw = self._data[entry.offset : entry.offset + entry.bytes]
        match entry.kind:
            case "tiles":
                return raw
            case "experts":
                return raw.view(entry.shape[0], entry.stride)
            case "plain":
                return raw.view(PLAIN[entry.format]).view(entry.shape)

    def check(
        self, roles: Mapping[str, str] | None = None, remedy: Callable[[], str] = pack_again
    ) -> Check:
        """A check of the file against all its digests; the caller has to start the check.

        `roles` gives the role of each of the model's tensors by name; messages contain the role.
        `remedy` gives the end of an error message.
        """
        known = roles or {}
        return Check(
            (
                claim_of_bytes(
                    self.path,
                    named(
                        name,
                        known.get(name, known.get(f"{name}.w_in")),
                        number if len(entry.sha256) > 1 else None,
                    ),
                    digest,
                    self._begin + entry.offset + number * entry.stride,
                    entry.stride,
                )
                for name, entry in self.entries.items()
                for number, digest in enumerate(entry.sha256)
            ),
            remedy,
        )


class PackedWriter:
    """Writes the tensors that a header lists, and computes their digests.

    A background thread writes one part and computes its digest while the caller makes the next
    part. At most two parts wait for the thread. If writing fails, a later call raises the OSError,
    at the latest `finish`.
    """

    def __init__(self, handle: BinaryIO, header: Header) -> None:
        self._handle, self._header = handle, header
        self._begin = len(encoded(header))
        self._given: list[TensorWriter] = []
        self._thread = ThreadPoolExecutor(1, "packed-writer")
        self._waiting: deque[Future[str]] = deque()

    @property
    def bytes(self) -> int:
        """The size of the whole file in bytes."""
        return self._begin + self._header.data_bytes

    @property
    def done(self) -> int:
        """The bytes of the file, header included, up to the end of the last tensor written."""
        given = len(self._given)
        if not given:
            return self._begin
        last = self._header.tensors[given - 1]
        return self._begin + last.offset + last.bytes

    @contextmanager
    def tensor(self) -> Iterator["TensorWriter"]:
        """A context manager that writes the next tensor of the header.

        The caller must add all bytes of the tensor inside the block.
        """
        entry = self._header.tensors[len(self._given)]
        writer = TensorWriter(self._begin + entry.offset, self._hand_over)
        try:
            yield writer
        except BaseException:
            self._thread.shutdown(cancel_futures=True)
            raise
        assert writer.bytes == entry.bytes, f"all of {entry.name} is given"
        assert writer.parts == len(entry.sha256), f"{entry.name} has as many parts"
        self._given.append(writer)

    def finish(self) -> Header:
        """Write the header, after all tensors; return the header with its digests."""
        assert len(self._given) == len(self._header.tensors), "every tensor is given"
        self._thread.shutdown()
        tensors = tuple(
            entry.model_copy(update={"sha256": given.digests()})
            for entry, given in zip(self._header.tensors, self._given, strict=True)
        )
        header = self._header.model_copy(update={"tensors": tensors})
        whole = encoded(header)
        assert len(whole) == self._begin, "digests are as long as their places"
        self._handle.seek(0)
        self._handle.write(whole)
        # If the last tensor has no bytes, the file must still reach up to its offset.
        self._handle.truncate(self.bytes)
        return header

    def _hand_over(self, start: int, raw: Tensor) -> "Future[str]":
        if len(self._waiting) == _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, start, raw))
        return self._waiting[-1]

    def _write(self, start: int, raw: Tensor) -> str:
        self._handle.seek(start)
        self._handle.write(raw.numpy().data)
        return _digest(raw)


class TensorWriter:
    """Writes one tensor's bytes, part by part, with a digest for each part."""

    def __init__(self, start: int, hand_over: "Callable[[int, Tensor], Future[str]]") -> None:
        self._start, self._hand_over = start, hand_over
        self._digests: list[Future[str]] = []
        self.bytes = 0

    @property
    def parts(self) -> int:
        return len(self._digests)

    def add(self, part: Tensor) -> None:
        """Add the next part of the tensor; `part` must not change afterwards.

        An OSError that this call raises is from writing an earlier part.
        """
        raw = part.contiguous().flatten().view(torch.uint8)
        self._digests.append(self._hand_over(self._start + self.bytes, raw))
        self.bytes += prod(raw.shape)

    def digests(self) -> tuple[str, ...]:
        """Wait until all parts are written; return the digests. Raises OSError if a write fails."""
        return tuple(digest.result() for digest in self._digests)


def _mapped(path: Path) -> Tensor:
    """The file's bytes, mapped read-only.

    The operating system may refuse a writable map of a file that is larger than memory.
    """
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _digest(raw: Tensor) -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()
