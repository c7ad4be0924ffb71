"""Tokenizers of scored pieces that treat spaces and bytes as SentencePiece and llama.cpp do.

A `tokenizer.json` says almost all of it, and other programs read it. It cannot say that a space is
set before a text whatever the text begins with, nor which characters SentencePiece replaces where
several belong together. `Spelling` states that beside it, and text is prepared here.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mixtura.errors import DataError
from mixtura.json_reader import parse_object
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, Spelling, TokenFacts
from mixtura.tokenizers.piece_text import SPACE, PieceText
from mixtura.tokenizers.pieces import Pieces
from mixtura.tokenizers.sentencepiece_json import (
    charsmap_of,
    lattice_of,
    plain_of,
    sentencepiece_json,
    unigram_bytes,
)
from mixtura.tokenizers.subwords import FILE, bytes_added
from mixtura.tokenizers.tokenizer import Encoded, check_tokens, to_utf8
from mixtura.tokenizers.tokenizer_library import backend_of, checked
from tokenizers import Encoding

_SPACES = re.compile(" {2,}")


class _Spelt(NamedTuple):
    """A text as the pieces spell it."""

    text: str
    set_at: tuple[int, ...]
    """where a space was set that the text did not have"""


class _Token(NamedTuple):
    number: int
    end: int
    """where it ends in the text that was spelt"""


class SentencePieceTokenizer(CheckpointTokenizer):
    """From what `sentencepiece_json` wrote, with `facts.spelling`.

    Raises DataError where the text is no such tokenizer.json.
    """

    def __init__(self, text: str, facts: TokenFacts, origin: str = FILE) -> None:
        assert facts.spelling is not None, "this class was chosen because it is stated"
        self._spelling, self._text = facts.spelling, text
        try:
            tree = parse_object(text, origin, DataError)
            special = {one["content"]: bool(one["special"]) for one in tree["added_tokens"]}
            self._charsmap = charsmap_of(tree, origin)
            plain = json.dumps(plain_of(tree))
            is_unigram = tree["model"]["type"] == "Unigram"
            lattice = backend_of(json.dumps(lattice_of(tree)), origin) if is_unigram else None
            self._bytes_of_unknown = unigram_bytes(tree)
            self._hidden = {text for text, is_special in special.items() if is_special}
            self._marks = _one_of(self._hidden)
            self._shown = _one_of(special.keys() - self._hidden)
        except DataError:
            raise
        # The package `tokenizers` raises nothing narrower than Exception.
        except Exception as error:
            raise DataError(f"{origin}: not a tokenizer.json of scored pieces ({error})") from error
        super().__init__(plain, facts, origin)
        self._encoder = lattice or self._backend
        rule = self._spelling
        self._piece_text = PieceText(self._piece_of, rule.strips, rule.collapse)

    def encode(self, text: str, continues: bool = False) -> list[int]:
        to_utf8(text)
        spelt = self._spelt(text, begins=not continues)
        with checked(self._origin):
            encoding = self._encoder.encode(spelt.text, add_special_tokens=False)
        return [token.number for token in self._tokens(encoding, spelt)]

    def encode_with_marks(self, text: str, continues: bool = False) -> list[int]:
        to_utf8(text)
        ids: list[int] = []
        begins = not continues
        # Odd pieces are marks.
        for number, piece in enumerate(self._marks.split(text)):
            if number % 2:
                ids.append(self.special[piece])
                begins = self._spelling.prefix_after != "nothing"
            elif piece:
                ids += self.encode(piece, continues=not begins)
                begins = False
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Raises DataError for a tokenizer that changes text, so that bytes would mean nothing."""
        if self._charsmap is not None or self._spelling.collapse:
            raise DataError(
                "this tokenizer replaces characters or drops spaces, so its tokens do not say how "
                "many bytes of a text they stand for; use one that gives text back as it was"
            )
        spelt = [self._spelt(text, begins=True) for text in texts]
        spelt_texts = [one.text for one in spelt]
        with checked(self._origin):
            encodings = self._encoder.encode_batch(spelt_texts, add_special_tokens=False)
        return [
            _with_bytes(text, own, self._tokens(encoding, own))
            for text, own, encoding in zip(texts, spelt, encodings, strict=True)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        check_tokens(tokens, self.vocabulary)
        return self._piece_text(tokens)

    def to_json(self, pretty: bool = False) -> str:
        if not pretty:
            return self._text
        return json.dumps(json.loads(self._text), ensure_ascii=False, indent=2)

    def _piece_of(self, token: int) -> str | None:
        text = self._backend.id_to_token(token)
        return None if text in self._hidden else text

    def _spelt(self, text: str, begins: bool) -> _Spelt:
        rule = self._spelling
        if not text:
            return _Spelt("", ())
        if self._charsmap is not None:
            # What the user defined, the odd parts, is kept as it is.
            parts = self._shown.split(text)
            parts[::2] = map(self._charsmap, parts[::2])
            text = "".join(parts)
        if rule.collapse:
            text = _SPACES.sub(" ", text.lstrip(" ") if begins else text)
        text = text.replace(" ", SPACE)
        ahead = begins and rule.prefix
        if rule.prefix and rule.prefix_after == "added":
            return _spaced(self._shown.split(text), ahead)
        text = SPACE + text if ahead else text
        return _Spelt(text.rstrip(SPACE) if rule.collapse else text, (0,) if ahead else ())

    def _tokens(self, encoding: Encoding, spelt: _Spelt) -> Iterator[_Token]:
        if self._bytes_of_unknown is None:
            for number, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
                yield _Token(number, end)
            return
        unknown, of_byte = self._bytes_of_unknown
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number != unknown:
                yield _Token(number, end)
                continue
            for at in range(start, end):
                yield from (_Token(of_byte[byte], at + 1) for byte in spelt.text[at].encode())

    def _check_text_comes_back(self, origin: str) -> None:
        """A model runs without it, and `encode_batch` refuses where it matters."""


def sentencepiece_tokenizer(
    pieces: Pieces,
    facts: TokenFacts,
    *,
    charsmap: bytes = b"",
    begin: str | None = None,
    origin: str = "the vocabulary",
) -> SentencePieceTokenizer:
    """With `facts.spelling`, else its defaults; `begin` is what every text begins with.

    Raises DataError for pieces that do not fit together.
    """
    spelling = facts.spelling or Spelling()
    text = sentencepiece_json(pieces, spelling, charsmap=charsmap, begin=begin)
    stated = facts.model_copy(update={"spelling": spelling})
    return SentencePieceTokenizer(text, stated, origin)


def _one_of(names: Collection[str]) -> re.Pattern[str]:
    """Splits text so that odd parts are names, the longest that fit."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _spaced(parts: Sequence[str], ahead: bool) -> _Spelt:
    """Spaces set before the text, if `ahead`, and behind each added token, the odd parts."""
    spelt = ""
    set_at: list[int] = []
    for number, part in enumerate(parts):
        is_added = bool(number % 2)
        if ahead and part and not is_added:
            set_at.append(len(spelt))
            spelt += SPACE
        spelt += part
        ahead = is_added if part else ahead
    return _Spelt(spelt, tuple(set_at))


def _with_bytes(text: str, spelt: _Spelt, tokens: Iterator[_Token]) -> Encoded:
    found = list(tokens)
    end_N = np.array([token.end for token in found], np.int64)
    # What was set before the end of a token is no part of the text.
    end_N -= np.searchsorted(np.array(spelt.set_at, np.int64), end_N)
    ids_N = np.array([token.number for token in found], np.int64)
    return Encoded(ids_N, bytes_added(text, end_N))
