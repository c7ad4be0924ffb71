"""Vocabularies of scored pieces, as in SentencePiece and in llama.cpp's tokenizer kind `llama`.

A piece is a token's text. In it "▁" means a space, and the piece `<0xE9>` means the byte 0xE9.
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
# Bounds on the number of pieces and on the characters of a piece. Gemma has a quarter as many
# pieces, and its longest piece is a run of 31 spaces.
_MOST_PIECES = 2**20
_LONGEST = 512


class PieceKind(IntEnum):
    """The kinds of pieces, by the numbers that SentencePiece and llama.cpp use."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_KINDS = frozenset(PieceKind)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The text, the score and the kind of each token, in the order of token numbers.

    Raises DataError for lists of different lengths, values out of bounds, a text that occurs twice,
    or missing byte pieces.
    """

    algorithm: Algorithm
    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    byte_fallback: bool
    """whether a character without a piece becomes the byte pieces of its UTF-8 bytes"""

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
    """Add tokens to `pieces`; special tokens and texts in `marks` become control pieces.

    Raises DataError if an added token has the number of a piece with another text.
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
    """Write `pieces` as a tokenizer.json's section `model`. Raises DataError if they do not fit."""
    unknown = pieces.of_kind(PieceKind.UNKNOWN)
    if pieces.algorithm == "bpe":
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            # In SentencePiece a run of unknown characters is one token; byte pieces stay separate.
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
    """List every pair of pieces that join to a third piece, the third piece's highest score first.

    SentencePiece joins the two neighbours that make the piece of the highest score. If several
    pairs make pieces of this score, it joins the leftmost pair. Raises DataError if no order of
    merges has this effect.
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
    # Of pieces with equal scores the longest comes first, for the reason given in `_check_tie`.
    made.sort(key=lambda one: (-one[0], -len(one[1])))
    for _, tied in groupby(made, key=lambda one: one[0]):
        _check_tie([text for _, text, _ in tied])
    return [pair for _, _, pairs in made for pair in pairs]


def _pairs(text: str, normal: set[str]) -> list[tuple[str, str]]:
    """List the pairs of pieces that join to `text`, so ordered that the leftmost merges first.

    Three neighbours x, y, z can have xy = yz = `text`. SentencePiece then joins x and y, so (x, y)
    must come before (y, z). Since `text` is also yz, it begins with y: (x, y) is the pair whose
    second part is also the beginning of `text`.
    """
    cuts = [cut for cut in range(1, len(text)) if text[:cut] in normal and text[cut:] in normal]
    if len(cuts) > 1:
        cuts.sort(key=lambda cut: (not text.startswith(text[cut:]), -cut))
    return [(text[:cut], text[cut:]) for cut in cuts]


def _check_tie(texts: Sequence[str]) -> None:
    """Raise DataError for pieces of equal score, unless all are runs of the same character.

    Llama's runs of spaces have equal scores. SentencePiece joins a run from the left, so each piece
    in it is at most as long as the piece before. The leftmost pair therefore makes the longest
    piece.
    """
    if len(texts) > 1 and len(set("".join(texts))) > 1:
        raise DataError(
            f"the pieces {texts[0]!r:.60} and {texts[1]!r:.60} have the same score, so which is "
            "joined first is not known; give the model's Hugging Face folder"
        )
