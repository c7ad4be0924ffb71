"""The text of pieces in which "▁" stands for a space and `<0xE9>` for a byte."""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPACE = "\u2581"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_EACH_BYTE = "mixtura-each-byte"
_STEPS = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@dataclass(frozen=True, slots=True)
class PieceText:
    """Decodes pieces; bytes are joined as in SentencePiece and llama.cpp.

    The package `tokenizers` makes a whole run of bytes U+FFFD where one of them is no character.
    A stream could then change text that it has shown.
    """

    piece_of: Callable[[int], str | None]
    """a token's piece; None for a token that is not shown"""
    strips: bool
    """whether the space in front of a text is removed"""
    collapse: bool = False
    """whether all spaces in front are removed"""

    def __call__(self, tokens: Sequence[int]) -> str:
        raw = bytearray()
        strips = self.strips
        for token in tokens:
            piece = self.piece_of(token)
            if piece is None:
                continue
            byte = _BYTE.fullmatch(piece)
            if byte is not None:
                raw.append(int(byte[1], 16))
                continue
            if strips and not raw and piece.startswith(SPACE):
                piece = piece[1:]
                # With `collapse`, every piece in front of the first text is stripped.
                strips = self.collapse
            raw += piece.replace(SPACE, " ").encode()
        return raw.decode("utf-8", _EACH_BYTE)


def decoder_steps(strips: bool) -> list[dict[str, Any]]:
    """The `decoder` of a tokenizer.json that decodes as PieceText does."""
    return [*_STEPS, _STRIP] if strips else [*_STEPS]


def strips_of(decoder: Mapping[str, Any] | None) -> bool | None:
    """`strips` of a decoder made by `decoder_steps`; None for any other decoder."""
    steps = (decoder or {}).get("decoders")
    return next((strips for strips in (False, True) if steps == decoder_steps(strips)), None)


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each byte that is no character; `replace` writes one for a run of them."""
    assert isinstance(error, UnicodeDecodeError), "registered for decoding only"
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _each_byte)
