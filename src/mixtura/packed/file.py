"""One file of packed weights: mapped when it is read, written tensor after tensor.

E experts.
"""

import hashlib
import mmap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mixtura.errors import CheckpointError
from mixtura.packed.header import PLAIN, Entry, Header, encoded, read_header

FILE = "model.mixtura"
"""the file's name in a packed folder"""


def is_packed(folder: Path) -> bool:
    """Whether it holds a packed model."""
    return (folder / FILE).is_file()


class PackedFile:
    """A packed model, mapped: nothing is read before it is computed with, and nothing is copied.

    Its tensors must not be written to. Raises CheckpointError for a file that is truncated, of a
    newer version, or whose header is not the one that was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, begin = read_header(path)
        self._data = _mapped(path)[begin:]
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in self.header.tensors}

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

    def verify(self) -> None:
        """Read all of it. Raises CheckpointError naming the first tensor or expert that differs."""
        for name, entry in self.entries.items():
            for expert, found in enumerate(self.digests(name)):
                if found != entry.sha256[expert]:
                    which = f"{name}, expert {expert}," if len(entry.sha256) > 1 else name
                    raise CheckpointError(
                        f"{self.path}: {which} is not what was written (its digest differs); copy "
                        "the file again, or pack the model again"
                    )

    def digests(self, name: str) -> Iterator[str]:
        """Of the tensor as it lies in the file, or of each of its experts."""
        entry = self.entries[name]
        for part in range(len(entry.sha256)):
            start = entry.offset + part * entry.stride
            yield _digest(self._data[start : start + entry.stride])


class PackedWriter:
    """Writes the tensors of a header, whose digests are filled in as their bytes come by."""

    def __init__(self, handle: BinaryIO, header: Header) -> None:
        self._handle, self._header = handle, header
        self._begin = len(encoded(header))
        self._written: list[Entry] = []

    @property
    def bytes(self) -> int:
        """The whole file's."""
        return self._begin + self._header.data_bytes

    @property
    def done(self) -> int:
        """Bytes written so far."""
        last = self._written[-1] if self._written else None
        return self._begin if last is None else self._begin + last.offset + last.bytes

    @contextmanager
    def tensor(self) -> Iterator["TensorWriter"]:
        """The next tensor of the header; to be given all of its bytes."""
        entry = self._header.tensors[len(self._written)]
        self._handle.seek(self._begin + entry.offset)
        writer = TensorWriter(self._handle)
        yield writer
        assert writer.bytes == entry.bytes, f"all of {entry.name} is written"
        assert len(writer.digests) == len(entry.sha256), f"{entry.name} has as many parts"
        self._written.append(entry.model_copy(update={"sha256": tuple(writer.digests)}))

    def finish(self) -> Header:
        """Write the header, once every tensor is there."""
        assert len(self._written) == len(self._header.tensors), "every tensor is written"
        header = self._header.model_copy(update={"tensors": tuple(self._written)})
        whole = encoded(header)
        assert len(whole) == self._begin, "digests are as long as their places"
        self._handle.seek(0)
        self._handle.write(whole)
        # The last tensor may be of no bytes, and its place has to exist.
        self._handle.truncate(self.bytes)
        return header


class TensorWriter:
    """Takes one tensor's bytes, part by part, each with a digest of its own."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.bytes = 0
        self.digests: list[str] = []

    def add(self, part: Tensor) -> None:
        raw = part.contiguous().flatten().view(torch.uint8)
        self._handle.write(raw.numpy().data)
        self.bytes += prod(raw.shape)
        self.digests.append(_digest(raw))


def _mapped(path: Path) -> Tensor:
    """Read-only: room for writes that never come would be refused where the file exceeds memory."""
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _digest(raw: Tensor) -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()
