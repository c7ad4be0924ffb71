"""The header of a packed file: a binary prefix, and JSON that gives the place of each tensor.

N output channels, K inputs, E experts, D width, F expert width.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mixtura.config import Config
from mixtura.errors import CheckpointError
from mixtura.json_reader import MOST_BYTES_LISTED, parse_object
from mixtura.regular_files import open_regular
from mixtura.shapes.storage.numbers import Bits, up
from mixtura.shapes.storage.packed import (
    Format,
    Placed,
    TensorKind,
    bits_of,
    boundary,
    kind_of,
    size_of,
)
from mixtura.shapes.storage.tiles import PAGE

MAGIC, VERSION = b"MIXTURA\0", 1
_PREFIX = struct.Struct("<8sIIQ")
"""magic bytes, format version, 0, and the number of bytes of the JSON header"""
_DIGEST_BYTES = 32

PLAIN: dict[Format, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
    "bool": torch.bool,
}


class Entry(Config):
    """The header's entry of one tensor of the file.

    The tensor is a packed matrix, the packed FFNs of a layer, or a plain parameter or buffer.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    """[N, K] for a packed matrix; [E, rows of w_in, D, F] for FFNs; a plain tensor's own shape"""
    offset: int = Field(ge=0)
    """bytes from the start of the data to the tensor"""
    bytes: int = Field(ge=0)
    sha256: tuple[str, ...]
    """the digest of all of the tensor's bytes; for FFNs, the digest of each expert's bytes"""

    @property
    def kind(self) -> TensorKind:
        return kind_of(self.format)

    @property
    def bits(self) -> Bits:
        """The bits of a weight; only for packed tensors."""
        return bits_of(self.format)

    @property
    def stride(self) -> int:
        """The bytes that one digest covers."""
        return self.bytes // max(len(self.sha256), 1)


class Header(Config):
    """The packed file's header, which is stored as JSON."""

    writer: str
    """the program that wrote the file, such as "mixtura 0.1.0" """
    family: str
    """the model_type of the model that was packed; "mixtura" for a model from a run"""
    bits: Bits
    config: dict[str, Any]
    """the result of DecoderConfig.model_dump for the model"""
    tensors: tuple[Entry, ...]
    """in the order of the file"""

    @property
    def data_bytes(self) -> int:
        return max((entry.offset + entry.bytes for entry in self.tensors), default=0)


def placed(
    name: str,
    stored_as: Format,
    shape: tuple[int, ...],
    after: Entry | None,
    digests: int | None = None,
) -> Entry:
    """The entry of a tensor at the first aligned offset after the tensor `after`.

    The entry has zeros as digests, because the tensor has not been written yet.
    """
    end = 0 if after is None else after.offset + after.bytes
    return undigested(Placed.behind(end, name, stored_as, shape), digests)


def undigested(one: Placed, digests: int | None = None) -> Entry:
    """The entry of a placed tensor that has not been written yet, with zeros as digests."""
    return Entry(
        name=one.name,
        format=one.format,
        shape=one.shape,
        offset=one.offset,
        bytes=one.bytes,
        sha256=("0" * 64,) * (one.digests if digests is None else digests),
    )


def encoded(header: Header) -> bytes:
    """The bytes before the data: prefix, JSON and the JSON's digest, padded to whole pages."""
    text = header.model_dump_json().encode()
    whole = _PREFIX.pack(MAGIC, VERSION, 0, len(text)) + text + hashlib.sha256(text).digest()
    return whole + bytes(-len(whole) % PAGE)


def read_header(path: Path) -> tuple[Header, int]:
    """The header, and the offset at which the data begins.

    Raises CheckpointError if the file cannot be read, was truncated, or has a damaged header.
    """
    try:
        with open_regular(path, CheckpointError) as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            length = _checked_length(path, opened.read(_PREFIX.size), size)
            text, digest = opened.read(length), opened.read(_DIGEST_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a folder that holds one") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(text).digest() != digest:
        raise CheckpointError(
            f"{path}: its header was altered or damaged (its digest differs); copy the file again, "
            "or pack the model again"
        )
    header = Header.parse(parse_object(text, f"{path}: header", CheckpointError), str(path))
    begin = up(_PREFIX.size + length + _DIGEST_BYTES, PAGE)
    if size != begin + header.data_bytes:
        raise CheckpointError(
            f"{path}: is {size:,} bytes long where its header says "
            f"{begin + header.data_bytes:,}; it was truncated or added to: copy it again"
        )
    _check_entries(path, header.tensors)
    return header, begin


def _checked_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise CheckpointError(
            f"{path}: is not a packed model (it does not begin with {MAGIC[:-1].decode()}); pack "
            "one with 'mixtura pack'"
        )
    _, version, _, length = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise CheckpointError(
            f"{path}: is of format version {version}, and this Mixtura reads version {VERSION}; "
            "upgrade Mixtura, or pack the model again"
        )
    if length > size:
        raise CheckpointError(
            f"{path}: is {size:,} bytes long and has a header of {length:,}; it was truncated: "
            "copy it again"
        )
    if length > MOST_BYTES_LISTED:
        raise CheckpointError(
            f"{path}: has a header of {length:,} bytes, where {MOST_BYTES_LISTED:,} are allowed; "
            "it is damaged: copy it again"
        )
    return length


def _check_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Raises CheckpointError for an entry that does not follow the format.

    Each tensor must be at the first aligned offset after the tensor before it, and have as many
    bytes as its shape needs. The header's digest does not ensure this, since a program may write a
    wrong header with a correct digest.
    """
    end, names = 0, set[str]()
    for entry in entries:
        if entry.name in names:
            raise CheckpointError(f"{path}: lists {entry.name} twice; pack the model again")
        names.add(entry.name)
        for what, found, expected in _stated(entry, end):
            if found != expected:
                raise CheckpointError(
                    f"{path}: {entry.name} has {what}={found} where its shape and place say "
                    f"{expected}; the program that wrote the file does not follow the format"
                )
        end = entry.offset + entry.bytes


def _stated(entry: Entry, end: int) -> Iterator[tuple[str, int, int]]:
    """(name, value in the entry, value required by the format) for each rule of an entry.

    `end` is where the previous tensor ends.
    """
    dims = {"tiles": 2, "experts": 4, "plain": len(entry.shape)}[entry.kind]
    yield "dims", len(entry.shape), dims
    yield "negative sizes", sum(size < 0 for size in entry.shape), 0
    yield "digests", len(entry.sha256), entry.shape[0] if entry.kind == "experts" else 1
    yield "bytes", entry.bytes, size_of(entry.format, entry.shape)
    yield "offset", entry.offset, up(end, boundary(entry.format))
