"""Encodes the head of a GGUF file: the metadata, and the list of the tensors."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from mixtura.checkpoints.gguf.header import ALIGNMENT, MAGIC, VERSIONS, TensorPlace
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.errors import ConfigError

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_LARGEST = 2**32 - 1


def placed(
    tensors: Iterable[tuple[str, tuple[int, ...], Kind]],
) -> list[TensorPlace]:
    """Place tensors one after another; `start` is counted from the end of the head."""
    places: list[TensorPlace] = []
    start = 0
    for name, shape, kind in tensors:
        place = TensorPlace(name, shape, kind, start, 0)
        place = replace(place, bytes=prod(shape[:-1]) * place.bytes_of_row)
        places.append(place)
        start += place.bytes + padding(place.bytes)
    return places


def head(metadata: Mapping[str, Any], places: Sequence[TensorPlace]) -> bytes:
    """Encode the head. Raises ConfigError, naming the key, for an integer outside 0..2^32 - 1."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(places), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(key, value)]
    for place in places:
        shape = place.shape[::-1]
        parts += [
            _text(place.name),
            struct.pack(f"<I{len(shape)}Q", len(shape), *shape),
            struct.pack("<IQ", place.kind.value, place.start),
        ]
    whole = b"".join(parts)
    return whole + bytes(padding(len(whole)))


def padding(size: int) -> int:
    """The number of bytes from `size` to the next multiple of 32, where a tensor may begin."""
    return -size % ALIGNMENT


def as_read(value: Any) -> Any:
    """The value that a reader gets after `value` is written.

    A float is rounded to fp32, and read as the shortest decimal of the fp32 number.
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _value(key: str, value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int() if 0 <= value <= _LARGEST:
            return struct.pack("<II", _U32, value)
        case int():
            raise ConfigError(f"{key}={value} must lie in 0..{_LARGEST} to be written to GGUF")
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case list() if all(isinstance(one, str) for one in value):
            texts = b"".join(map(_text, value))
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + texts
        case list() if all(isinstance(one, int) for one in value):
            numbers = np.array(value, "<i4").tobytes()
            return struct.pack("<IIQ", _ARRAY, _I32, len(value)) + numbers
        case list():
            numbers = np.array(value, "<f4").tobytes()
            return struct.pack("<IIQ", _ARRAY, _F32, len(value)) + numbers
        case _:
            raise AssertionError(f"{key} is a {type(value).__name__}, which no architecture writes")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
