"""Replaces characters by SentencePiece's `precompiled_charsmap`, a map such as that of NFKC.

The map's bytes begin with a trie of the texts to replace: a double array in the layout of
darts-clone. The replacement texts follow, and the trie holds their offsets.
"""

import struct
from typing import NamedTuple

import numpy as np

from mixtura.errors import DataError

# The most bytes of a map; the map of SentencePiece's rule nmt_nfkc_cf has 260 KB.
_LARGEST = 8 * 2**20
# The most characters of a text to replace; the longest such text in SentencePiece's maps has 18.
_LONGEST = 64


class _Found(NamedTuple):
    end: int
    text: str


class Charsmap:
    """At each place in a text, from left to right, replaces the longest part with a replacement.

    Raises DataError, whose message begins with `origin`, if the map is damaged. Some damage is
    found only when a text uses the damaged bytes.
    """

    def __init__(self, raw: bytes, origin: str = "the tokenizer") -> None:
        self._damaged = f"{origin}: the precompiled_charsmap is damaged"
        size = struct.unpack("<I", raw[:4])[0] if len(raw) >= 4 else 0
        if len(raw) > _LARGEST or not 4 <= size <= len(raw) - 4 or size % 4:
            raise DataError(f"{self._damaged}: the trie of {size} bytes does not fit in {len(raw)}")
        self._units: list[int] = np.frombuffer(raw, "<u4", size // 4, 4).tolist()
        self._texts = raw[4 + size :]

    def __call__(self, text: str) -> str:
        parts: list[str] = []
        at = 0
        while at < len(text):
            found = self._longest(text, at)
            parts.append(text[at] if found is None else found.text)
            at = at + 1 if found is None else found.end
        return "".join(parts)

    def _longest(self, text: str, at: int) -> _Found | None:
        found, unit = None, 0
        place = _offset(self._units[0])
        for end in range(at, min(at + _LONGEST, len(text))):
            for byte in text[end].encode():
                place ^= byte
                unit = self._unit(place)
                # A node has its byte in the low 8 bits. Bit 31 marks a unit that holds a value.
                if unit & 0x800000FF != byte:
                    return found
                place ^= _offset(unit)
            if unit & 0x100:
                found = _Found(end + 1, self._text(self._unit(place) & 0x7FFFFFFF))
        return found

    def _unit(self, place: int) -> int:
        if place >= len(self._units):
            raise DataError(f"{self._damaged}: the trie points behind its end")
        return self._units[place]

    def _text(self, start: int) -> str:
        end = self._texts.find(b"\0", start)
        if start >= len(self._texts) or end < 0:
            raise DataError(f"{self._damaged}: it points behind its texts")
        try:
            return self._texts[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self._damaged}: a replacement is no UTF-8 text") from error


def _offset(unit: int) -> int:
    """Return the offset of a unit's children.

    The child for a byte is the unit at the index (the unit's own index) XOR offset XOR byte.
    """
    return (unit >> 10) << ((unit & 0x200) >> 6)
