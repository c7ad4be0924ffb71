"""Decodes pieces. In a piece "▁" means a space, and the piece `<0xE9>` means the byte 0xE9."""

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
    """Decodes tokens; as in SentencePiece and llama.cpp, each invalid byte becomes one U+FFFD.

    The package `tokenizers` would replace a whole run of byte pieces by U+FFFD if one byte of the
    run is invalid. A later token could then change text that a stream has already returned.
    """

    piece_of: Callable[[int], str | None]
    """maps a token to its piece, or to None if the token gives no text"""
    strips: bool
    """whether the space in front of a text is removed"""
    collapse: bool = False
    """whether `strips` removes all spaces in front of a text, not only one"""

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
                # With `collapse`, each further piece loses its space too, until there is text.
                strips = self.collapse
            raw += piece.replace(SPACE, " ").encode()
        return raw.decode("utf-8", _EACH_BYTE)


def decoder_steps(strips: bool) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json's `decoder`, which decode valid UTF-8 as PieceText does."""
    return [*_STEPS, _STRIP] if strips else [*_STEPS]


def strips_of(decoder: Mapping[str, Any] | None) -> bool | None:
    """Return the `strips` with which `decoder_steps` wrote this decoder; None for another one."""
    steps = (decoder or {}).get("decoders")
    return next((strips for strips in (False, True) if steps == decoder_steps(strips)), None)


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """Handle a decoding error by writing one U+FFFD for each invalid byte.

    Python's own handler `replace` writes a single U+FFFD for all bytes of a character that is cut.
    """
    assert isinstance(error, UnicodeDecodeError), "registered for decoding only"
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _each_byte)
