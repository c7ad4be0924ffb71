"""Reads SentencePiece's `tokenizer.model`.

The file is a protobuf message: `ModelProto` of SentencePiece's sentencepiece_model.proto. Its
fields are copied into plain values and checked, so that a damaged file gives an error of one line.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixtura.errors import DataError
from mixtura.regular_files import read_bytes
from mixtura.tokenizers.charsmap import Charsmap
from mixtura.tokenizers.pieces import Algorithm, PieceKind, Pieces
from mixtura.tokenizers.subwords import MODEL_FILE

# The most bytes of a file; Gemma's file has 262,144 pieces and 4.7 MB.
_LARGEST = 64 * 2**20
_ALGORITHMS: dict[int, Algorithm] = {1: "unigram", 2: "bpe"}
_OTHERS = {3: "word", 4: "char"}
NamedPiece = Literal["unk", "bos", "eos", "pad"]
# For each name, the number of its field in the message TrainerSpec, and the field's default.
_NAMES: dict[NamedPiece, tuple[int, str]] = {
    "unk": (45, "<unk>"),
    "bos": (46, "<s>"),
    "eos": (47, "</s>"),
    "pad": (48, "<pad>"),
}


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """The fields of a `tokenizer.model` that affect tokens or text."""

    pieces: Pieces
    charsmap: bytes
    """the bytes of the map for `Charsmap`, which replaces characters before all other steps; may be
    empty"""
    collapse: bool
    """whether spaces around the text are removed, and each run of spaces becomes one space"""
    prefix: bool
    """whether a space is added before every text"""
    names: dict[NamedPiece, str]
    """the texts of the pieces unk, bos, eos and pad, as far as the vocabulary has these pieces"""


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Read a `tokenizer.model`.

    Raises DataError for a file of another kind, a damaged file, or unsupported settings.
    """
    try:
        raw = read_bytes(path, DataError, _LARGEST)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected SentencePiece's {MODEL_FILE}") from None
    try:
        return _parsed(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _parsed(raw: bytes) -> SentencePieceFile:
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer = normalizer = denormalizer = b""
    for field, value in _fields(raw):
        match field:
            case 1:
                piece = _Message(_as_bytes(value))
                texts.append(piece.text(1, ""))
                scores.append(piece.real(2))
                kinds.append(piece.number(3, PieceKind.NORMAL))
            # If a message occurs twice, protobuf merges the two: joining their bytes does the same.
            case 2:
                trainer += _as_bytes(value)
            case 3:
                normalizer += _as_bytes(value)
            case 5:
                denormalizer += _as_bytes(value)
    if not texts:
        raise DataError(f"holds no pieces, so it is no {MODEL_FILE} of SentencePiece")
    training, rules = _Message(trainer), _Message(normalizer)
    _check_settings(training, rules, _Message(denormalizer))
    kind = training.number(3, 1)
    if kind not in _ALGORITHMS:
        known = _OTHERS.get(kind, f"number {kind}")
        raise DataError(f"its model type is {known}, expected one of unigram, bpe")
    pieces = Pieces(_ALGORITHMS[kind], texts, scores, kinds, training.flag(35, False))
    charsmap = rules.raw(2)
    if charsmap:
        Charsmap(charsmap, "its rules")
    return SentencePieceFile(
        pieces,
        charsmap,
        collapse=rules.flag(4, True),
        prefix=rules.flag(3, True),
        names=_names(training, pieces),
    )


def _check_settings(training: "_Message", rules: "_Message", after: "_Message") -> None:
    for wrong, what in (
        (training.flag(24, False), "treat_whitespace_as_suffix"),
        (not rules.flag(5, True), "escape_whitespaces=false"),
        (bool(after.raw(2)), "a denormalizer"),
    ):
        if wrong:
            raise DataError(f"uses {what}, which is not supported; give a tokenizer.json instead")


def _names(training: "_Message", pieces: Pieces) -> dict[NamedPiece, str]:
    held = {
        text
        for text, kind in zip(pieces.texts, pieces.kinds, strict=True)
        if kind in {PieceKind.CONTROL, PieceKind.UNKNOWN}
    }
    found: dict[NamedPiece, str] = {}
    for part, (field, usual) in _NAMES.items():
        name = training.text(field, usual)
        if name in held:
            found[part] = name
    return found


class _Message:
    """The fields of a protobuf message; if a field occurs twice, its last value counts.

    A method raises DataError if the field's value is not of the type that the method returns.
    """

    def __init__(self, raw: bytes) -> None:
        self._values = dict(_fields(raw))

    def number(self, field: int, default: int) -> int:
        value = self._values.get(field, default)
        if not isinstance(value, int):
            raise DataError(f"is damaged: field {field} should be a whole number")
        return value

    def flag(self, field: int, default: bool) -> bool:
        return bool(self.number(field, default))

    def raw(self, field: int) -> bytes:
        return _as_bytes(self._values.get(field, b""))

    def text(self, field: int, default: str) -> str:
        if field not in self._values:
            return default
        try:
            return self.raw(field).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"is damaged: field {field} is no UTF-8 text ({error})") from error

    def real(self, field: int) -> float:
        raw = self.raw(field) or bytes(4)
        if len(raw) != 4:
            raise DataError(f"is damaged: field {field} should be a number of 32 bits")
        return struct.unpack("<f", raw)[0]


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value: an int for a varint, bytes for any other type."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield field, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise DataError(f"is no {MODEL_FILE} of SentencePiece, or is damaged at byte {at}")
        if size > len(raw) - at:
            raise DataError(f"is cut short: {size} bytes should follow byte {at} of a message")
        yield field, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Read an integer at index `at`; return it and the index after it.

    Each byte holds 7 bits, the lowest bits first.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise DataError("is cut short: it ends within a number")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DataError(f"is damaged: the number at byte {at - 10} of a message has no end")


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DataError("is damaged: a number stands where a message should")
    return value
