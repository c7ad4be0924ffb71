"""A file of packed weights: mapped for reading, written tensor after tensor.

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
from typing import BinaryIO

import torch
from torch import Tensor

from mixtura.integrity import Check, claim_of_bytes, named
from mixtura.packed.header import PLAIN, Entry, Header, encoded, read_header

# Parts that wait to be written: the memory that packing needs besides the part being made.
_WAITING = 2


def pack_again() -> str:
    """The remedy for a damaged file."""
    return "copy the file again, or pack the model again"


class PackedFile:
    """A packed model, mapped: its bytes are read when they are first used, and not copied.

    Its tensors must not be written to. Raises CheckpointError for a file that is truncated or of a
    newer version, and for a header that was altered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self._begin = read_header(path)
        self._data = _mapped(path)[self._begin :]
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in self.header.tensors}

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a plain tensor."""
        stored_as = self.entries[name].format
        return PLAIN[stored_as]

    def read(self, name: str) -> Tensor:
        """A view of the file: plain numbers in their shape, flat tiles, or experts (E, stride)."""
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
        """A check of the whole file, not yet begun; `roles` has the model's tensors by name."""
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
    """Writes the tensors of a header, and computes their digests.

    A thread writes and digests while the next part is made; at most two parts wait for it. An error
    of the file system is raised by a later call, by `finish` at the latest.
    """

    def __init__(self, handle: BinaryIO, header: Header) -> None:
        self._handle, self._header = handle, header
        self._begin = len(encoded(header))
        self._given: list[TensorWriter] = []
        self._thread = ThreadPoolExecutor(1, "packed-writer")
        self._waiting: deque[Future[str]] = deque()

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return self._begin + self._header.data_bytes

    @property
    def done(self) -> int:
        """Bytes of the tensors written so far, and of the gaps between them."""
        given = len(self._given)
        if not given:
            return self._begin
        last = self._header.tensors[given - 1]
        return self._begin + last.offset + last.bytes

    @contextmanager
    def tensor(self) -> Iterator["TensorWriter"]:
        """The next tensor of the header; the caller adds all of its bytes."""
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
        """Write the header, after every tensor."""
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
        # The last tensor may have no bytes; the file still reaches up to its place.
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
        """`part` must not change afterwards. Raises OSError, if at all, for an earlier part."""
        raw = part.contiguous().flatten().view(torch.uint8)
        self._digests.append(self._hand_over(self._start + self.bytes, raw))
        self.bytes += prod(raw.shape)

    def digests(self) -> tuple[str, ...]:
        """Waits until all is written. Raises OSError where a write failed."""
        return tuple(digest.result() for digest in self._digests)


def _mapped(path: Path) -> Tensor:
    """Read-only: a writable map of a file larger than memory may be refused by the system."""
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _digest(raw: Tensor) -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()
