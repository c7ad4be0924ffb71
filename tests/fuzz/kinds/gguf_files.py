"""GGUF files: keys, counts, kinds, shapes and places changed, and written as a file again."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from tests.fuzz.kind import Kind
from tests.fuzz.mutations import ESCAPES, spoilt_bytes
from tests.fuzz.usage import continued, continued_together

T = TypeVar("T")

_ARRAY, _STRING = 9, 8
# By number of a type: the letter that struct has for it.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_NUMBERS = [0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 64, 255, 4096, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
_FLOATS = [0.0, -1.0, 1e-38, 1e38, float("inf"), float("nan"), 0.5, 1e4, 1e-5]
_TEXTS = ["", "x", "llama", "qwen2", "gpt2", "none", "yarn", "linear", "{{ messages }}", ESCAPES]
# Of the numbers that GGML has, those that are read and those that are not.
_KINDS = [
    0,
    1,
    2,
    3,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    19,
    20,
    23,
    24,
    28,
    29,
    30,
    34,
    39,
    99,
]


@dataclass(frozen=True)
class Key:
    name: bytes
    kind: int
    value: bytes


@dataclass(frozen=True)
class Listed:
    """A tensor of the list."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class Parts:
    keys: tuple[Key, ...]
    tensors: tuple[Listed, ...]
    data: bytes


class GGUFFiles(Kind):
    """A key or a tensor is changed in most cases; else bytes of the whole."""

    name = "gguf"
    fast_cases = 40

    def __init__(self) -> None:
        self._parts: dict[Path, Parts] = {}

    def make_valid(self, folder: Path) -> None:
        from tests.fuzz.tiny_models import tiny_models, tiny_tokenizer

        from mixtura.checkpoints.family_source import FamilySource
        from mixtura.checkpoints.gguf.file_writer import write_gguf
        from mixtura.shapes.families import family_named

        kinds = ("q4_0", "q8_0", "f32", "f16", "bf16")
        for (model_type, decoder), kind in zip(tiny_models(), kinds, strict=True):
            source = FamilySource.of(decoder, family_named(model_type), folder)
            path = folder / f"{model_type}.gguf"
            write_gguf(source, tiny_tokenizer(), path, name="tiny", kind=kind)

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        path = rng.choice(sorted(valid.glob("*.gguf")))
        raw = path.read_bytes()
        if rng.randrange(6) == 0:
            # Where the file says most: its head, or all of it.
            cut = rng.choice([400, 4000, len(raw)])
            spoilt = spoilt_bytes(rng, raw[:cut]) + raw[cut:]
        else:
            if path not in self._parts:
                self._parts[path] = _taken_apart(raw)
            parts = self._parts[path]
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                parts = _changed(rng, parts)
            spoilt = _put_together(rng, parts)
        (case / path.name).write_bytes(spoilt)

    def parse(self, case: Path) -> None:
        from mixtura.checkpoints.gguf.header import read_header

        for path in case.iterdir():
            read_header(path)

    def read(self, case: Path) -> None:
        from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
        from mixtura.checkpoints.inspection import inspect_model
        from mixtura.checkpoints.loaded_model import load_source
        from mixtura.checkpoints.open_model import check_vocabulary

        for path in case.iterdir():
            inspect_model(path)
            source = GGUFSource(path)
            loaded = load_source(source)
            tokenizer = gguf_tokenizer(source.metadata)
            check_vocabulary(path, tokenizer, loaded.decoder.config)
            continued(loaded.decoder, tokenizer, path)
            continued_together(loaded.decoder, tokenizer, path)


def _taken_apart(raw: bytes) -> Parts:
    """A file as it was written: nothing is checked."""
    tensors, keys = struct.unpack_from("<QQ", raw, 8)
    at = 24
    found: list[Key] = []
    for _ in range(keys):
        name, at = _text(raw, at)
        (kind,) = struct.unpack_from("<I", raw, at)
        end = _end_of_value(raw, at + 4, kind)
        found.append(Key(name, kind, raw[at + 4 : end]))
        at = end
    listed: list[Listed] = []
    for _ in range(tensors):
        name, at = _text(raw, at)
        (count,) = struct.unpack_from("<I", raw, at)
        dims = struct.unpack_from(f"<{count}Q", raw, at + 4)
        kind, start = struct.unpack_from("<IQ", raw, at + 4 + 8 * count)
        listed.append(Listed(name, dims, kind, start))
        at += 16 + 8 * count
    return Parts(tuple(found), tuple(listed), raw[at + -at % 32 :])


def _text(raw: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", raw, at)
    return raw[at + 8 : at + 8 + size], at + 8 + size


def _end_of_value(raw: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _text(raw, at)[1]
    if kind != _ARRAY:
        return at + struct.calcsize(_SCALARS[kind])
    inner, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if inner != _STRING:
        return at + count * struct.calcsize(_SCALARS[inner])
    for _ in range(count):
        at = _text(raw, at)[1]
    return at


def _put_together(rng: Random, parts: Parts) -> bytes:
    """As a file; now and then with counts that are not those of its lists."""
    counts = [len(parts.tensors), len(parts.keys)]
    if rng.randrange(30) == 0:
        counts[rng.randrange(2)] = rng.choice([0, 1, counts[0] + 1, 10**6, 2**40, 2**64 - 1])
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    for key in parts.keys:
        head += _sized(key.name) + struct.pack("<I", key.kind) + key.value
    for one in parts.tensors:
        dims = [dim % 2**64 for dim in one.dims]
        head += _sized(one.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", one.kind, one.start % 2**64)
    return head + bytes(-len(head) % 32) + parts.data


def _sized(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _changed(rng: Random, parts: Parts) -> Parts:
    if rng.randrange(5) < 3:
        return replace(parts, keys=_changed_list(rng, parts.keys, _changed_key))
    if rng.randrange(12) == 0:
        data = parts.data
        spoilt = rng.choice([data[: rng.randrange(len(data) + 1)], data + bytes(100), b""])
        return replace(parts, data=spoilt or spoilt_bytes(rng, data))
    return replace(parts, tensors=_changed_list(rng, parts.tensors, _changed_tensor))


def _changed_list(
    rng: Random, listed: Sequence[T], change: Callable[[Random, T], T]
) -> tuple[T, ...]:
    """One of them changed; or left out, twice, or in another's place."""
    at = rng.randrange(len(listed)) if listed else 0
    before, rest = list(listed[:at]), list(listed[at:])
    match rng.randrange(12):
        case 0:
            return (*before, *rest[1:])
        case 1:
            return (*before, *rest[:1], *rest)
        case 2:
            return (*rest, *before)
    return (*before, *[change(rng, one) for one in rest[:1]], *rest[1:])


def _changed_key(rng: Random, key: Key) -> Key:
    match rng.randrange(10):
        case 0:
            name = rng.choice([key.name + b"x", key.name[:-1], b"", b"\xff", ESCAPES.encode()])
            return replace(key, name=name)
        case 1:
            # The same bytes as another type.
            return replace(key, kind=rng.choice([*range(13), 77]))
        case 2:
            return _any_key(rng, key.name)
    if not _is_whole(key):
        # An earlier change gave its bytes another type.
        return _any_key(rng, key.name)
    if key.kind == _ARRAY:
        return replace(key, value=_changed_array(rng, key.value))
    if key.kind == _STRING:
        text = rng.choice([*(one.encode() for one in _TEXTS), b"\xff\xfe", key.value[8:] * 2])
        return replace(key, value=_sized(text))
    letter = _SCALARS[key.kind]
    if letter in "fd":
        return replace(key, value=struct.pack("<f", rng.choice(_FLOATS)))
    (number,) = struct.unpack(f"<{letter}", key.value)
    near = [number + 1, number - 1, 2 * number, number // 2, *_NUMBERS]
    return replace(key, kind=10, value=struct.pack("<Q", rng.choice(near) % 2**64))


def _is_whole(key: Key) -> bool:
    if key.kind in _SCALARS:
        return len(key.value) == struct.calcsize(_SCALARS[key.kind])
    return key.kind == _STRING or (key.kind == _ARRAY and len(key.value) >= 12)


def _any_key(rng: Random, name: bytes) -> Key:
    match rng.randrange(4):
        case 0:
            return Key(name, _STRING, _sized(rng.choice(_TEXTS).encode()))
        case 1:
            return Key(name, 6, struct.pack("<f", rng.choice(_FLOATS)))
        case 2:
            numbers = [rng.choice(_NUMBERS) % 2**32 for _ in range(rng.randrange(5))]
            value = struct.pack(f"<IQ{len(numbers)}I", 4, len(numbers), *numbers)
            return Key(name, _ARRAY, value)
    return Key(name, rng.choice([7, 11, 12]), struct.pack("<q", -rng.choice(_NUMBERS)))


def _changed_array(rng: Random, value: bytes) -> bytes:
    inner, count = struct.unpack_from("<IQ", value)
    body = value[12:]
    match rng.randrange(5):
        case 0:
            count = rng.choice([0, 1, count - 1, count + 1, 2 * count, 2**32, 2**61, 2**64 - 1])
        case 1:
            inner = rng.choice([*range(13), 77])
        case 2 if inner == _STRING:
            texts = [_sized(rng.choice(_TEXTS).encode()) for _ in range(rng.randrange(300))]
            count, body = len(texts), b"".join(texts)
        case _:
            body = spoilt_bytes(rng, body, 2)
    return struct.pack("<IQ", inner, count % 2**64) + body


def _changed_tensor(rng: Random, one: Listed) -> Listed:
    match rng.randrange(6):
        case 0:
            name = rng.choice([one.name + b"x", b"", b"blk.7.attn_q.weight", ESCAPES.encode()])
            return replace(one, name=name)
        case 1:
            return replace(one, kind=rng.choice(_KINDS))
        case 2:
            near = [one.start + 1, one.start + 32, one.start - 32, 0, 2**40, 2**63]
            return replace(one, start=rng.choice(near))
        case 3:
            return replace(one, dims=rng.choice([one.dims[::-1], (*one.dims, 1), one.dims[1:]]))
    dims = list(one.dims or (1,))
    at = rng.randrange(len(dims))
    dims[at] = rng.choice([dims[at] + 1, dims[at] - 1, 2 * dims[at], 0, 1, 2**32, 2**63, 32])
    return replace(one, dims=tuple(dims))


KINDS = [GGUFFiles()]
