"""Tokenizers that run in the package `tokenizers`: trained here as BPE, or read from a file.

N tokens of a text.
"""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixtura.config import Config
from mixtura.errors import DataError
from mixtura.files import atomic_text
from mixtura.regular_files import decoded, read_bytes
from mixtura.tokenizers.characters import byte_offsets
from mixtura.tokenizers.piece_text import PieceText, strips_of
from mixtura.tokenizers.text_stream import TextStream
from mixtura.tokenizers.tokenizer import DESCRIPTION, Encoded, TrainingText, check_tokens, to_utf8
from mixtura.tokenizers.tokenizer_library import backend_of, captured_stderr, checked, read_again
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

FILE = "tokenizer.json"
MODEL_FILE = "tokenizer.model"
MOST_BYTES = 128 << 20
"""the most bytes of a tokenizer.json; the largest published file has a third of that"""
END_OF_DOCUMENT = "<|endoftext|>"
# Tokens that end a document in published tokenizers; the first that a vocabulary has is used.
_KNOWN_ENDS = (
    END_OF_DOCUMENT,
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
)
# The probe has upper and lower case, accents, runs of spaces, line ends, a ligature, several
# scripts and an emoji.
_PROBE = "If x==1:\n\tprint('Ünï-code')  # 2026\r\n Жук 木 🙂 ﬁn \n"


class BpeConfig(Config):
    """Byte-level BPE with `vocabulary` tokens, including the end of a document.

    It is trained on the training documents. If these have more than `sample_mb` megabytes (10^6
    bytes each), it is trained on a sample of that size. A small text yields fewer tokens than
    `vocabulary`, and the prepared corpus states how many.
    """

    kind: Literal["bpe"]
    vocabulary: int = Field(default=4096, ge=257, le=2**20)
    sample_mb: float = Field(default=64.0, gt=0)

    def fingerprint(self) -> str:
        return ""

    def build(self, training_text: TrainingText) -> "SubwordTokenizer":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=[END_OF_DOCUMENT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            # Without a bound, a frequent row of dashes would become one long token. A corpus stores
            # a token's number of bytes in one byte, so a token may have at most 255 bytes.
            max_token_length=128,
            show_progress=False,
        )
        backend.train_from_iterator(training_text(self.sample_mb * 1e6), trainer)
        return SubwordTokenizer(backend.to_str(), END_OF_DOCUMENT)


class FileConfig(Config):
    """A `tokenizer.json` or SentencePiece's `tokenizer.model`, or a folder with one of them.

    `end_of_document` is the text of the token that ends a document; None selects the first usual
    one, such as "</s>", that the vocabulary has.
    """

    kind: Literal["file"]
    path: str = Field(min_length=1)
    end_of_document: str | None = None

    def fingerprint(self) -> str:
        """A digest of all files that `load` reads."""
        digest = hashlib.sha256(self._raw())
        if self._path.suffix == Path(MODEL_FILE).suffix:
            from mixtura.tokenizers.hugging_face_tokenizer import BESIDE

            for path in (self._path.parent / name for name in BESIDE):
                if path.exists():
                    digest.update(path.name.encode())
                    digest.update(read_bytes(path, DataError, MOST_BYTES))
        return digest.hexdigest()

    def build(self, training_text: TrainingText) -> "SubwordTokenizer":
        return self.load()

    def load(self) -> "SubwordTokenizer":
        """Load the tokenizer. Raises DataError if its file is missing or cannot be used."""
        if self._path.suffix == Path(MODEL_FILE).suffix:
            from mixtura.tokenizers.hugging_face_tokenizer import sentencepiece_beside

            return sentencepiece_beside(self._path, self.end_of_document)
        text = decoded(self._raw(), self._path, DataError)
        return SubwordTokenizer(text, self.end_of_document, origin=self.path)

    @property
    def _path(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return path
        found = ((path / name) for name in (FILE, MODEL_FILE) if (path / name).exists())
        return next(found, path / FILE)

    def _raw(self) -> bytes:
        try:
            return read_bytes(self._path, DataError, MOST_BYTES)
        except FileNotFoundError:
            raise DataError(
                f"{self._path}: no such file; give a {FILE}, a {MODEL_FILE} or their folder"
            ) from None


class SubwordTokenizer:
    """A tokenizer from the text of a `tokenizer.json`; `encode_batch` uses all cores.

    Raises DataError if the text is no tokenizer.json, if the token that ends a document is missing,
    or if a sample text is not the same after encoding and decoding. The comparison is made in
    Unicode's NFC, since many published tokenizers apply NFC.
    """

    def __init__(self, text: str, end: str | None = None, origin: str = FILE) -> None:
        self._origin = origin
        self._backend = backend_of(text, origin)
        # A special token's text inside a document must not be encoded as that token.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = 1 + max(self._backend.get_vocab().values())
        self.end_of_document = self._find_end(end, origin)
        self.begin: tuple[int, ...] = ()
        self.ends = frozenset({self.end_of_document})
        with captured_stderr():
            self._check_text_comes_back(origin)

    def _check_text_comes_back(self, origin: str) -> None:
        back = self.decode(self.encode(_PROBE))
        if unicodedata.normalize("NFC", back) != unicodedata.normalize("NFC", _PROBE):
            raise DataError(
                f"{origin}: does not give text back as it was (case, accents or spaces are lost), "
                "so bits per byte would mean nothing; use a byte-level tokenizer"
            )

    def encode(self, text: str, continues: bool = False) -> list[int]:
        to_utf8(text)
        with checked(self._origin):
            backend = self._continuing if continues else self._backend
            return backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        with checked(self._origin):
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            Encoded(
                np.array(one.ids, np.int64),
                bytes_added(text, np.array([end for _, end in one.offsets], np.int64)),
            )
            for text, one in zip(texts, encodings, strict=True)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        check_tokens(tokens, self.vocabulary)
        if self._piece_decoder is not None:
            return self._piece_decoder(tokens)
        with checked(self._origin):
            return self._backend.decode([t for t in tokens if t != self.end_of_document])

    def byte_length(self, tokens: Sequence[int]) -> int:
        return len(self.decode(tokens).encode())

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        return TextStream(self.decode, after)

    def save(self, folder: Path) -> None:
        end = self._backend.id_to_token(self.end_of_document)
        atomic_text(folder / FILE, self.to_json(pretty=True))
        atomic_text(folder / DESCRIPTION, json.dumps({"kind": "file", "end_of_document": end}))

    def token_text(self, token: int) -> str:
        """A token's text in the vocabulary."""
        text = self._backend.id_to_token(token)
        assert text is not None, "a token of the vocabulary"
        return text

    def to_json(self, pretty: bool = False) -> str:
        """The text of a tokenizer.json."""
        return self._backend.to_str(pretty=pretty)

    @cached_property
    def _piece_decoder(self) -> PieceText | None:
        """The decoder of scored pieces; None for a tokenizer of another kind."""
        decoder = self._backend.decoder
        strips = None if decoder is None else strips_of(json.loads(decoder.__getstate__()))
        if strips is None:
            return None
        added = self._backend.get_added_tokens_decoder()
        hidden = {number for number, one in added.items() if one.special} | {self.end_of_document}

        def piece_of(token: int) -> str | None:
            return None if token in hidden else self._backend.id_to_token(token)

        return PieceText(piece_of, strips)

    @cached_property
    def _continuing(self) -> Backend:
        return without_prefix(self._backend, self._origin)

    def _find_end(self, end: str | None, origin: str) -> int:
        for name in (end,) if end is not None else _KNOWN_ENDS:
            found = self._backend.token_to_id(name)
            if found is not None:
                return found
        missing = repr(end) if end is not None else f"none of {', '.join(_KNOWN_ENDS)}"
        raise DataError(
            f"{origin}: has {'no ' * (end is not None)}{missing} to end a document; "
            "name its token with data.tokenizer.end_of_document"
        )


def without_prefix(backend: Backend, origin: str) -> Backend:
    """Return a copy of `backend` that adds no space before a text.

    Returns `backend` itself if it adds none.
    """
    tree = json.loads(backend.to_str())
    steps = {"type": "Sequence", "normalizers": [tree["normalizer"]] if tree["normalizer"] else []}
    changed = [_drop_prefix(steps), _drop_prefix(tree["pre_tokenizer"])]
    if not any(changed):
        return backend
    tree["normalizer"] = steps
    other = read_again(json.dumps(tree), origin)
    other.encode_special_tokens = backend.encode_special_tokens
    return other


def _drop_prefix(step: Any) -> bool:
    """Change a step of a tokenizer.json so that it adds no space before a text.

    Returns whether the step added one.
    """
    if step is None:
        return False
    inner = [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
    changed = [_drop_prefix(one) for one in inner]
    if "normalizers" in step:
        step["normalizers"] = [one for one in inner if one["type"] != "Prepend"]
    if step.get("add_prefix_space"):
        step["add_prefix_space"] = False
        return True
    if step.get("prepend_scheme", "never") != "never":
        step["prepend_scheme"] = "never"
        return True
    return any(changed) or any(one["type"] == "Prepend" for one in inner)


def bytes_added(text: str, end_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of UTF-8 bytes that each token adds to the text.

    `end_N` states where each token ends, as an index of a character. If several tokens share a
    character, all its bytes count for the first of these tokens. Some tokenizers leave out spaces:
    characters between two tokens count for the second token, and characters after the last token
    count for that token.
    """
    if not len(end_N):
        return np.zeros(0, np.int64)
    end_N = np.append(end_N[:-1], len(text))
    return np.diff(np.maximum.accumulate(byte_offsets(text)[end_N]), prepend=0)
