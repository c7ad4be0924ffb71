"""One file of packed weights: mapped when it is read, written tensor after tensor.

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

# Parts that have been made and are not yet written: memory that packing takes beside its own.
_WAITING = 2


def pack_again() -> str:
    """What to do about a damaged file."""
    return "copy the file again, or pack the model again"


class PackedFile:
    """A packed model, mapped: nothing is read before it is computed with, and nothing is copied.

    Its tensors must not be written to. Raises CheckpointError for a file that is truncated, of a
    newer version, or whose header is not the one that was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self._begin = read_header(path)
        self._data = _mapped(path)[self._begin :]
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in self.header.tensors}

    def dtype_of(self, name: str) -> torch.dtype:
        """Of a plain tensor."""
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
        """A check of all of it, not yet begun; `roles` are those of a model's tensors by name."""
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
    """Writes the tensors of a header, whose digests are filled in as their bytes come by.

    A thread of its own writes and digests while the next part is being made; no more than two
    parts wait for it. What the file system refuses is raised by a later call, `finish` at the last.
    """

    def __init__(self, handle: BinaryIO, header: Header) -> None:
        self._handle, self._header = handle, header
        self._begin = len(encoded(header))
        self._given: list[TensorWriter] = []
        self._thread = ThreadPoolExecutor(1, "packed-writer")
        self._waiting: deque[Future[str]] = deque()

    @property
    def bytes(self) -> int:
        """The whole file's."""
        return self._begin + self._header.data_bytes

    @property
    def done(self) -> int:
        """Bytes taken so far, those between tensors included."""
        given = len(self._given)
        if not given:
            return self._begin
        last = self._header.tensors[given - 1]
        return self._begin + last.offset + last.bytes

    @contextmanager
    def tensor(self) -> Iterator["TensorWriter"]:
        """The next tensor of the header; to be given all of its bytes."""
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
        """Write the header, once every tensor is there."""
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
        # The last tensor may be of no bytes, and its place has to exist.
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
    """Takes one tensor's bytes, part by part, each with a digest of its own."""

    def __init__(self, start: int, hand_over: "Callable[[int, Tensor], Future[str]]") -> None:
        self._start, self._hand_over = start, hand_over
        self._digests: list[Future[str]] = []
        self.bytes = 0

    @property
    def parts(self) -> int:
        return len(self._digests)

    def add(self, part: Tensor) -> None:
        """Not to be written to from here on. Raises OSError for an earlier part, if at all."""
        raw = part.contiguous().flatten().view(torch.uint8)
        self._digests.append(self._hand_over(self._start + self.bytes, raw))
        self.bytes += prod(raw.shape)

    def digests(self) -> tuple[str, ...]:
        """Once all is written. Raises OSError where it could not be."""
        return tuple(digest.result() for digest in self._digests)


def _mapped(path: Path) -> Tensor:
    """Read-only: room for writes that never come would be refused where the file exceeds memory."""
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _digest(raw: Tensor) -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()
