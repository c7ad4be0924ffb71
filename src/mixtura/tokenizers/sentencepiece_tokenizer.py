"""Tokenizers of scored pieces that treat spaces and bytes as SentencePiece and llama.cpp do.

A `tokenizer.json` cannot state two of their rules. One adds a space before every text, whatever the
text begins with. The other, SentencePiece's, replaces a sequence of several characters at once. So
this module applies the rules of `Spelling` and `Charsmap` to a text, and then encodes the prepared
text.
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


class _PreparedText(NamedTuple):
    """A text in the spelling of the pieces: "▁" stands for each space."""

    text: str
    set_at: tuple[int, ...]
    """the indices, in `text`, of added spaces, which the original text does not have"""


class _Token(NamedTuple):
    number: int
    end: int
    """the index in the prepared text at which the token ends"""


class SentencePieceTokenizer(CheckpointTokenizer):
    """A tokenizer from a tokenizer.json that `sentencepiece_json` wrote, and from `facts.spelling`.

    Raises DataError if `text` is not such a tokenizer.json.
    """

    def __init__(self, text: str, facts: TokenFacts, origin: str = FILE) -> None:
        assert facts.spelling is not None, "this class is chosen where a spelling is stated"
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
        # For a bad file the package `tokenizers` raises plain Exception, and no subclass of it.
        except Exception as error:
            raise DataError(f"{origin}: not a tokenizer.json of scored pieces ({error})") from error
        super().__init__(plain, facts, origin)
        # The token that ends a document has no text, also if the file does not mark it as special.
        end = self._backend.id_to_token(self.end_of_document)
        self._hidden |= set() if end is None else {end}
        self._encoder = lattice or self._backend
        rule = self._spelling
        self._piece_text = PieceText(self._piece_of, rule.strips, rule.collapse)

    def encode(self, text: str, continues: bool = False) -> list[int]:
        to_utf8(text)
        prepared = self._prepared(text, begins=not continues)
        with checked(self._origin):
            encoding = self._encoder.encode(prepared.text, add_special_tokens=False)
        return [token.number for token in self._tokens(encoding, prepared)]

    def encode_with_marks(self, text: str, continues: bool = False) -> list[int]:
        to_utf8(text)
        ids: list[int] = []
        begins = not continues
        # Of the parts that `split` returns, those with an odd index are special tokens.
        for number, piece in enumerate(self._marks.split(text)):
            if number % 2:
                ids.append(self.special[piece])
                begins = self._spelling.prefix_after != "nothing"
            elif piece:
                ids += self.encode(piece, continues=not begins)
                begins = False
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts; each result has the tokens, and each token's number of bytes.

        Raises DataError if the tokenizer changes text, since that number is then undefined.
        """
        if self._charsmap is not None or self._spelling.collapse:
            raise DataError(
                "this tokenizer replaces characters or drops spaces, so its tokens do not say how "
                "many bytes of a text they stand for; use one that gives text back as it was"
            )
        prepared = [self._prepared(text, begins=True) for text in texts]
        prepared_texts = [one.text for one in prepared]
        with checked(self._origin):
            encodings = self._encoder.encode_batch(prepared_texts, add_special_tokens=False)
        return [
            _with_bytes(text, own, self._tokens(encoding, own))
            for text, own, encoding in zip(texts, prepared, encodings, strict=True)
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

    def _prepared(self, text: str, begins: bool) -> _PreparedText:
        rule = self._spelling
        if not text:
            return _PreparedText("", ())
        if self._charsmap is not None:
            # The parts with an odd index are user-defined pieces, which stay unchanged.
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
        return _PreparedText(text.rstrip(SPACE) if rule.collapse else text, (0,) if ahead else ())

    def _tokens(self, encoding: Encoding, prepared: _PreparedText) -> Iterator[_Token]:
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
                yield from (_Token(of_byte[byte], at + 1) for byte in prepared.text[at].encode())

    def _check_text_comes_back(self, origin: str) -> None:
        """Check nothing: a tokenizer that changes text can be used to generate text. It cannot be
        used for `encode_batch`, which raises an error itself.
        """


def sentencepiece_tokenizer(
    pieces: Pieces,
    facts: TokenFacts,
    *,
    charsmap: bytes = b"",
    begin: str | None = None,
    origin: str = "the vocabulary",
) -> SentencePieceTokenizer:
    """Build a tokenizer from pieces, with `facts.spelling` or the default `Spelling`.

    `begin` is the token that every text begins with. Raises DataError for pieces that cannot form a
    tokenizer.
    """
    spelling = facts.spelling or Spelling()
    text = sentencepiece_json(pieces, spelling, charsmap=charsmap, begin=begin)
    stated = facts.model_copy(update={"spelling": spelling})
    return SentencePieceTokenizer(text, stated, origin)


def _one_of(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern whose `split` puts names at the odd indices; longer names match first."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _spaced(parts: Sequence[str], ahead: bool) -> _PreparedText:
    """Join `parts`, of which those with an odd index are added tokens, and the others are texts.

    A space is added before each text that follows an added token, and before the first text if
    `ahead`.
    """
    prepared = ""
    set_at: list[int] = []
    for number, part in enumerate(parts):
        is_added = bool(number % 2)
        if ahead and part and not is_added:
            set_at.append(len(prepared))
            prepared += SPACE
        prepared += part
        ahead = is_added if part else ahead
    return _PreparedText(prepared, tuple(set_at))


def _with_bytes(text: str, prepared: _PreparedText, tokens: Iterator[_Token]) -> Encoded:
    found = list(tokens)
    end_N = np.array([token.end for token in found], np.int64)
    # The original text lacks the added spaces, so those before a token's end are subtracted.
    end_N -= np.searchsorted(np.array(prepared.set_at, np.int64), end_N)
    ids_N = np.array([token.number for token in found], np.int64)
    return Encoded(ids_N, bytes_added(text, end_N))
