"""Files of SentencePiece as plain values, written as the protobuf message that they are."""

import struct
from dataclasses import dataclass, replace
from random import Random

from tests.fuzz.mutations import ESCAPES

_VARINT, _BYTES, _FOUR_BYTES = 0, 2, 5
_NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
_SCORES = [0.0, -0.0, 1.0, -1.0, -50.0, 1e38, -1e38, 1e-40, float("inf"), float("nan")]
_TEXTS = ["", " ", "\u2581", "<s>", "<0x41>", "<0xZZ>", "a", "cat", "\x00", ESCAPES, "x" * 600]
# Of settings: the kind of model, bytes, spaces, the names of tokens, maps of characters.
_TRAINER, _RULES = (3, 24, 35, 45, 46, 47, 48), (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Piece:
    text: bytes
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    pieces: tuple[Piece, ...]
    trainer: dict[int, int | bytes]
    """TrainerSpec, by the number of the field"""
    rules: dict[int, int | bytes]
    """NormalizerSpec, likewise"""


def small_model(kind: int) -> Model:
    """Every byte, letters and a few words: unigram is 1, BPE is 2."""
    words = ["\u2581", "t", "h", "e", "c", "a", "th", "he", "the", "\u2581the", "\u2581c", "at"]
    pieces = [
        *(Piece(name.encode(), 0.0, 2 if number == 0 else 3) for number, name in _MARKS),
        *(Piece(f"<0x{byte:02X}>".encode(), 0.0, 6) for byte in range(256)),
        *(Piece(word.encode(), -float(number), 1) for number, word in enumerate(words, 1)),
    ]
    return Model(tuple(pieces), {3: kind, 35: 1}, {3: 1, 4: 0, 5: 1})


_MARKS = tuple(enumerate(("<unk>", "<s>", "</s>")))


def written(model: Model) -> bytes:
    pieces = b"".join(
        _field(
            1,
            _field(1, piece.text)
            + _tag(2, _FOUR_BYTES)
            + struct.pack("<f", piece.score)
            + _field(3, piece.kind),
        )
        for piece in model.pieces
    )
    settings = [b"".join(_field(*one) for one in part.items()) for part in _parts(model)]
    return pieces + _field(2, settings[0]) + _field(3, settings[1])


def spoilt_model(rng: Random, model: Model) -> Model:
    """A piece in three of four cases, else a setting."""
    if rng.randrange(4) == 0:
        value = rng.choice([rng.choice(_NUMBERS), rng.choice(_TEXTS).encode(), _odd_map(rng)])
        if rng.randrange(2):
            return replace(model, trainer={**model.trainer, rng.choice(_TRAINER): value})
        return replace(model, rules={**model.rules, rng.choice(_RULES): value})
    pieces = list(model.pieces)
    at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    match rng.randrange(6):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(at, pieces[other])
        case 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        case 3:
            text = rng.choice([rng.choice(_TEXTS).encode(), b"\xff", pieces[other].text * 3])
            pieces[at] = replace(pieces[at], text=text)
        case 4:
            pieces[at] = replace(pieces[at], score=rng.choice(_SCORES))
        case _:
            pieces[at] = replace(pieces[at], kind=rng.choice(_NUMBERS))
    return replace(model, pieces=tuple(pieces))


def _odd_map(rng: Random) -> bytes:
    """A charsmap: the size of a trie, its units, and texts behind it."""
    units = [rng.choice([0, 1, 255, 2**10, 2**31, rng.getrandbits(32)]) for _ in range(300)]
    size = rng.choice([4 * len(units)] * 4 + [0, 3, 2**32 - 1])
    return struct.pack("<I300I", size, *units) + rng.choice([b"", b"a\0", b"\xff\0", b"long" * 99])


def _parts(model: Model) -> tuple[dict[int, int | bytes], dict[int, int | bytes]]:
    return model.trainer, model.rules


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _tag(number, _VARINT) + _varint(value)
    return _tag(number, _BYTES) + _varint(len(value)) + value


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
