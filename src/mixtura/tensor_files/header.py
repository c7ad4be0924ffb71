"""Reads the header of a safetensors file: the dtype, shape and byte range of each tensor.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of the header, the
header as JSON, then the bytes of all tensors one after another, without gaps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mixtura.errors import CheckpointError
from mixtura.json_reader import MOST_BYTES_LISTED, parse_object
from mixtura.regular_files import open_regular

METADATA = "__metadata__"
BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
}  # fmt: skip
"""the number of bits of one element, by dtype"""
_LENGTH_BYTES = 8
_MOST_DIMS = 8


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """The entry of one tensor in the header of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """where the tensor's bytes begin, counted from the start of the file"""
    bytes: int


def read_header(path: Path) -> Mapping[str, TensorSpan]:
    """Read the entry of every tensor, in the order of the tensors' bytes in the file.

    Raises CheckpointError if the file is missing or cut short, if an entry is malformed, or if the
    tensors do not fill the file exactly. The message contains no remedy: the remedy depends on the
    kind of checkpoint, so the caller adds it.
    """
    try:
        with open_regular(path, CheckpointError) as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            begin = _LENGTH_BYTES + length
            if begin > size or not length:
                raise _error(path, f"has {size:,} bytes, and a header that ends at byte {begin:,}")
            if length > MOST_BYTES_LISTED:
                raise _error(path, f"has a header of {length:,} bytes, over {MOST_BYTES_LISTED:,}")
            tree = parse_object(opened.read(length), f"{path}: its header", CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    spans = sorted(_spans(path, begin, tree), key=lambda span: (span.start, span.bytes))
    end = begin
    for span in spans:
        if span.start != end:
            raise _error(
                path,
                f"{span.name} begins at byte {span.start:,} where the one before ends at {end:,}",
            )
        end += span.bytes
    if end != size:
        raise _error(path, f"has {size:,} bytes where its header describes {end:,}")
    return {span.name: span for span in spans}


def _spans(path: Path, begin: int, tree: Mapping[str, Any]) -> Iterator[TensorSpan]:
    for name, entry in tree.items():
        if name == METADATA:
            continue
        dtype, shape, offsets = _fields(entry)
        if not isinstance(dtype, str) or dtype not in BITS:
            raise _error(path, f"{name} is of the unknown dtype {dtype!r:.40}")
        if not _whole_numbers(shape) or len(shape) > _MOST_DIMS:
            raise _error(path, f"{name} has the shape {shape!r:.60}")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise _error(path, f"{name} has the data_offsets {offsets!r:.60}")
        size, (first, last) = prod(shape) * BITS[dtype] // 8, offsets
        if last - first != size:
            raise _error(
                path,
                f"{name}, {dtype} of shape {shape!r:.60}, has {last - first!r:.40} bytes in place "
                f"of {size!r:.40}",
            )
        yield TensorSpan(name, dtype, tuple(shape), begin + first, size)


def _fields(entry: Any) -> tuple[Any, Any, Any]:
    fields = entry if isinstance(entry, dict) else {}
    return fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")


def _whole_numbers(value: Any) -> bool:
    """Whether `value` is a list of integers of 0 or more."""
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _error(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole safetensors file ({problem})")
