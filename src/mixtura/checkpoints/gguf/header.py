"""Reads the head of a GGUF file, version 2 or 3: the metadata, and the list of the tensors.

`gguf.GGUFReader` is not used, because it makes a numpy array for each single number: it takes 2.8 s
for a vocabulary of 49,152 tokens, and this module takes 0.1 s. `GGUFReader` also reads past the end
of a truncated file without an error. The tests compare the two readers.
"""

import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind
from mixtura.errors import CheckpointError
from mixtura.regular_files import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
_MOST_DIMS = 4
# numpy's dtype for each type number of a value in the file; type 8 is a string, type 9 an array.
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
# The bytes of the smallest entries, whose names are empty. A tensor's entry holds the length of the
# name, the number of dims, the kind and the offset. A key's entry holds the length of the name, the
# type of the value, and a value of one byte.
_LEAST_OF_TENSOR, _LEAST_OF_KEY = 8 + 4 + 4 + 8, 8 + 4 + 1
# The most strings of an array; the largest vocabularies have 262,144 tokens. In memory a string
# takes six times as many bytes as in the file.
_MOST_TEXTS = 1 << 22
_MOST_ALIGNMENT = 1 << 20
# The most bytes of a head. Gemma's 262,144 tokens and their merges take some 16 MiB.
_MOST_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """The entry of one tensor in the head of the file."""

    name: str
    shape: tuple[int, ...]
    """slowest dim first, as in torch; the file lists the dims in reverse order"""
    kind: Kind
    start: int
    """where the tensor's bytes begin, counted from the start of the file"""
    bytes: int

    @property
    def bytes_of_row(self) -> int:
        block, size = BLOCKS[self.kind]
        return self.shape[-1] // block * size


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The content of a GGUF file except the weights."""

    metadata: Mapping[str, Any]
    """values by key: Python's numbers, booleans and strings, numpy arrays, and lists of strings"""
    tensors: tuple[TensorPlace, ...]


def read_header(path: Path) -> GGUFHeader:
    """Read the head of a GGUF file.

    Raises CheckpointError if the file is missing, truncated or no GGUF file, if it states more
    entries than it can hold, if a name occurs twice, or if tensors overlap.
    """
    try:
        with open_regular(path, CheckpointError) as handle:
            size = handle.seek(0, 2)
            if size == 0:
                raise CheckpointError(f"{path}: is empty; expected a GGUF file: fetch it again")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Reader(mapped, path).header()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


class _Reader:
    """Reads values one after another; reading past the end of the file raises CheckpointError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def header(self) -> GGUFHeader:
        self._check_magic()
        tensors, values = self._length("how many tensors"), self._length("how many keys")
        # Both counts are checked before memory is allocated for the two lists.
        self._check_room(tensors * _LEAST_OF_TENSOR, f"the list of {tensors} tensors")
        self._check_room(values * _LEAST_OF_KEY, f"the list of {values} keys")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = self._string("the name of a key")
            if key in metadata:
                raise self._error(f"has the key {key} twice; it is damaged: fetch it again")
            metadata[key] = self._value(key)
        listed = [self._tensor() for _ in range(tensors)]
        alignment = self._alignment(metadata)
        begin = -(-self._at // alignment) * alignment
        places = tuple(self._placed(begin, alignment, *one) for one in listed)
        self._check_apart(places)
        return GGUFHeader(metadata, places)

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", ALIGNMENT)
        powers = [1 << power for power in range(_MOST_ALIGNMENT.bit_length())]
        if isinstance(alignment, bool) or alignment not in powers:
            raise self._error(
                f"general.alignment={alignment!r:.40} must be a power of 2, at most "
                f"{_MOST_ALIGNMENT}; convert the model to GGUF anew"
            )
        return alignment

    def _check_apart(self, places: Iterable[TensorPlace]) -> None:
        """Raise CheckpointError if two tensors share a name or overlap."""
        names: set[str] = set()
        for place in places:
            if place.name in names:
                raise self._error(f"lists the tensor {place.name} twice; fetch it again")
            names.add(place.name)
        for one, other in pairwise(sorted(places, key=lambda place: (place.start, place.bytes))):
            if one.start + one.bytes > other.start:
                raise self._error(
                    f"tensors {one.name} and {other.name} overlap at byte {other.start}; it is "
                    "damaged: fetch it again"
                )

    def _check_magic(self) -> None:
        magic = self._take(4, "its first four letters")
        if magic != MAGIC:
            raise self._error(f"begins with {magic!r} where a GGUF file has {MAGIC!r}; it is none")
        version = int(self._number("<u4", "its version"))
        if version in VERSIONS:
            return
        if version & 0xFFFF == 0:
            raise self._error("is written for big-endian machines; convert it to little-endian")
        known = " or ".join(map(str, VERSIONS))
        raise self._error(f"is of GGUF version {version}, expected {known}; convert it anew")

    def _value(self, key: str) -> Any:
        kind = int(self._number("<u4", f"the type of {key}"))
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        value = self._number(self._scalar(kind, key), key)
        # 1e-05 in fp32 is 9.99999975e-06 in fp64. The shortest decimal of the fp32 number is 1e-05,
        # so the number is converted through text.
        return float(str(value)) if value.dtype == np.float32 else value.item()

    def _array(self, key: str) -> list[str] | NDArray[Any]:
        kind = int(self._number("<u4", f"the type of {key}"))
        count = self._length(key)
        if kind == _STRING:
            # A string takes at least 8 bytes, so a wrong count is found before reading begins.
            self._check_room(count * _LENGTH.size, key)
            if count > _MOST_TEXTS:
                raise self._error(f"{key} lists {count} texts, over {_MOST_TEXTS}; it is damaged")
            return [self._string(key) for _ in range(count)]
        dtype = np.dtype(self._scalar(kind, key))
        return np.frombuffer(self._take(count * dtype.itemsize, key), dtype)

    def _scalar(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise self._error(f"{key} has a value of the unknown type {kind}; the file is damaged")
        return _SCALARS[kind]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read a tensor's name, shape, kind number, and offset, counted from the head's end."""
        name = self._string("the name of a tensor")
        dims = int(self._number("<u4", f"tensor {name}"))
        if dims > _MOST_DIMS:
            raise self._error(f"tensor {name} has {dims} dims, expected at most {_MOST_DIMS}")
        shape = tuple(self._length(name) for _ in range(dims))[::-1]
        return name, shape, int(self._number("<u4", name)), self._length(name)

    def _placed(
        self, begin: int, alignment: int, name: str, shape: tuple[int, ...], kind: int, offset: int
    ) -> TensorPlace:
        try:
            stored = Kind(kind)
        except ValueError:
            raise self._error(f"tensor {name} has the unknown type {kind}") from None
        block, block_bytes = BLOCKS[stored]
        if shape and shape[-1] % block:
            raise self._error(
                f"tensor {name} of shape {shape} is {stored.name}, whose rows are multiples of "
                f"{block}"
            )
        size = prod(shape) // block * block_bytes
        if offset % alignment:
            raise self._error(
                f"tensor {name} begins {offset} bytes behind the head, no multiple of {alignment}; "
                "it is damaged: fetch it again"
            )
        end = begin + offset + size
        if end > len(self._data):
            raise self._error(
                f"tensor {name} ends at byte {end}, but the file has {len(self._data)}; it is cut "
                "short: fetch it again"
            )
        return TensorPlace(name, shape, stored, begin + offset, size)

    def _length(self, what: str) -> int:
        return _LENGTH.unpack(self._take(_LENGTH.size, what))[0]

    def _number(self, dtype: str, what: str) -> np.generic:
        return np.frombuffer(self._take(np.dtype(dtype).itemsize, what), dtype)[0]

    def _string(self, what: str) -> str:
        raw = self._take(self._length(what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"{what} is no UTF-8 text ({error.reason}); it is damaged") from error

    def _take(self, size: int, what: str) -> bytes:
        self._check_room(size, what)
        self._at += size
        return self._data[self._at - size : self._at]

    def _check_room(self, size: int, what: str) -> None:
        if self._at + size > len(self._data):
            raise self._error(
                f"ends at byte {len(self._data)}, within {what}; it is cut short: fetch it again"
            )
        if self._at + size > _MOST_BYTES:
            raise self._error(
                f"{what} would end at byte {self._at + size}, where a head has at most "
                f"{_MOST_BYTES}; it is damaged: fetch it again"
            )

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {problem}")
