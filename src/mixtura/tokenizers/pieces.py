"""Vocabularies of scored pieces, as in SentencePiece and llama.cpp's `llama` kind.

In a piece "▁" stands for a space, and `<0xE9>` for a byte.
"""

import math
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import Any, Literal, NamedTuple

from mixtura.errors import DataError

Algorithm = Literal["bpe", "unigram"]
# Four times Gemma's, whose longest piece is a run of 31 spaces.
_MOST_PIECES = 2**20
_LONGEST = 512


class PieceKind(IntEnum):
    """SentencePiece's numbers, which llama.cpp shares."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_KINDS = frozenset(PieceKind)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Each token's text, score and kind.

    Raises DataError where these do not fit together, or cannot form a tokenizer.
    """

    algorithm: Algorithm
    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    byte_fallback: bool
    """whether a character that is no piece becomes the tokens of its bytes"""

    def __post_init__(self) -> None:
        count = len(self.texts)
        if not 0 < count <= _MOST_PIECES:
            raise DataError(f"{count} pieces must lie in 1..{_MOST_PIECES}")
        for name, values in (("scores", self.scores), ("kinds", self.kinds)):
            if len(values) != count:
                raise DataError(f"{len(values)} {name} for {count} pieces; the file is damaged")
        for number, (text, score, kind) in enumerate(
            zip(self.texts, self.scores, self.kinds, strict=True)
        ):
            if not 0 < len(text) <= _LONGEST:
                raise DataError(
                    f"piece {number} has {len(text)} characters, and must have 1..{_LONGEST}"
                )
            if not math.isfinite(score):
                raise DataError(f"piece {number}, {text!r:.60}, has the score {score}")
            if kind not in _KINDS:
                raise DataError(f"piece {number}, {text!r:.60}, is of the unknown kind {kind}")
        if len(set(self.texts)) < count:
            (twice, _), *_ = Counter(self.texts).most_common(1)
            raise DataError(f"the piece {twice!r:.60} stands twice among {count}")
        if self.byte_fallback:
            self._check_bytes()

    def of_kind(self, *kinds: PieceKind) -> list[str]:
        return [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind in kinds]

    def _check_bytes(self) -> None:
        held = set(self.of_kind(PieceKind.BYTE))
        missing = [name for name in map(byte_name, range(256)) if name not in held]
        if missing:
            raise DataError(f"falls back to bytes, but has no byte piece {missing[0]}")


class AddedPiece(NamedTuple):
    """A token that was added to a finished vocabulary."""

    number: int
    text: str
    special: bool


def extended(pieces: Pieces, added: Iterable[AddedPiece], marks: Container[str]) -> Pieces:
    """`pieces` with added tokens; `marks` and special tokens become control pieces.

    Raises DataError where an added token has the number of another one.
    """
    texts, scores, kinds = list(pieces.texts), list(pieces.scores), list(pieces.kinds)
    for one in added:
        if not 0 <= one.number < _MOST_PIECES:
            raise DataError(f"the added token {one.text!r:.60} has the number {one.number}")
        for number in range(len(texts), one.number + 1):
            texts.append(f"[PAD{number}]")
            scores.append(0.0)
            kinds.append(PieceKind.UNUSED)
        if one.number < len(pieces.texts) and texts[one.number] != one.text:
            raise DataError(
                f"the added token {one.text!r:.60} has the number {one.number}, which is "
                f"{texts[one.number]!r:.60}"
            )
        texts[one.number] = one.text
        if kinds[one.number] != PieceKind.UNKNOWN:
            kinds[one.number] = PieceKind.CONTROL if one.special else PieceKind.USER_DEFINED
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if text in marks and kind != PieceKind.UNKNOWN:
            kinds[number] = PieceKind.CONTROL
    return Pieces(pieces.algorithm, texts, scores, kinds, pieces.byte_fallback)


def byte_name(byte: int) -> str:
    return f"<0x{byte:02X}>"


def model_of(pieces: Pieces) -> dict[str, Any]:
    """The `model` of a tokenizer.json. Raises DataError for pieces that it cannot hold exactly."""
    unknown = pieces.of_kind(PieceKind.UNKNOWN)
    if pieces.algorithm == "bpe":
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            # In SentencePiece a run of unknown characters is one token, and bytes stay separate.
            "fuse_unk": True,
            "byte_fallback": pieces.byte_fallback,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(pieces.texts)},
            "merges": [list(merge) for merge in merges_of(pieces)],
        }
    if not unknown:
        raise DataError("has no piece for what is unknown, which unigram models need")
    return {
        "type": "Unigram",
        "unk_id": pieces.texts.index(unknown[0]),
        "vocab": [[text, score] for text, score in zip(pieces.texts, pieces.scores, strict=True)],
        "byte_fallback": pieces.byte_fallback,
    }


def merges_of(pieces: Pieces) -> list[tuple[str, str]]:
    """Every merge of two pieces into one, the piece of the highest score first.

    SentencePiece joins the two neighbours that make the piece of the highest score, and of equal
    scores the leftmost. Raises DataError where no order of merges does the same.
    """
    normal = {
        text
        for text, kind in zip(pieces.texts, pieces.kinds, strict=True)
        if kind == PieceKind.NORMAL
    }
    made: list[tuple[float, str, list[tuple[str, str]]]] = []
    for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True):
        if kind not in {PieceKind.NORMAL, PieceKind.UNUSED}:
            continue
        pairs = _pairs(text, normal)
        if pairs and kind == PieceKind.UNUSED:
            raise DataError(
                f"joins through the unused piece {text!r:.60}, which is not supported; give a "
                "tokenizer.json instead"
            )
        if pairs:
            made.append((score, text, pairs))
    # At equal scores the longest comes first: see _check_tie.
    made.sort(key=lambda one: (-one[0], -len(one[1])))
    for _, tied in groupby(made, key=lambda one: one[0]):
        _check_tie([text for _, text, _ in tied])
    return [pair for _, _, pairs in made for pair in pairs]


def _pairs(text: str, normal: set[str]) -> list[tuple[str, str]]:
    """Pairs of pieces that make `text`, in the order that finds the leftmost first.

    Two pairs overlap in a text where the piece is `xy` and also `yz`, so that it repeats itself at
    the length of `x`. The pair that begins with `x` must then come first.
    """
    cuts = [cut for cut in range(1, len(text)) if text[:cut] in normal and text[cut:] in normal]
    if len(cuts) > 1:
        cuts.sort(key=lambda cut: (not text.startswith(text[cut:]), -cut))
    return [(text[:cut], text[cut:]) for cut in cuts]


def _check_tie(texts: Sequence[str]) -> None:
    """Raises DataError for pieces of one score, unless all are runs of one character.

    Llama's runs of spaces all have one score. Joined from the left, the pieces of a run never grow
    to the right, so the leftmost pair also makes the longest piece.
    """
    if len(texts) > 1 and len(set("".join(texts))) > 1:
        raise DataError(
            f"the pieces {texts[0]!r:.60} and {texts[1]!r:.60} have the same score, so which is "
            "joined first is not known; give the model's Hugging Face folder"
        )
