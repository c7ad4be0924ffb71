"""The protocol of tokenizers, a tokenizer of bytes, and the config of a tokenizer that is given.

N tokens of a text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixtura.config import Config
from mixtura.errors import DataError
from mixtura.files import atomic_text
from mixtura.tokenizers.text_stream import TextStream

DESCRIPTION = "tokenizer.mixtura.json"

TrainingText = Callable[[float], Iterable[str]]
"""Called with a number of bytes; returns texts of about this size to train a tokenizer on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text, and the number of UTF-8 bytes that each token adds to the text.

    The sum of `bytes_N` is the number of bytes of the text.
    """

    ids_N: NDArray[np.integer]
    bytes_N: NDArray[np.integer]


class Tokenizer(Protocol):
    """Encodes text as tokens and decodes them without loss: `decode(encode(text)) == text`."""

    @property
    def vocabulary(self) -> int:
        """The number of tokens, including the end of a document; tokens are 0..vocabulary-1."""
        ...

    @property
    def end_of_document(self) -> int: ...

    @property
    def begin(self) -> tuple[int, ...]:
        """Tokens with which every text of the model begins; `encode` does not add them."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generated text, the end of a document included."""
        ...

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Encode a text. No special token is added, and no text becomes a special token.

        Some tokenizers add a space before a text. They add none with `continues`, which states that
        other tokens precede the text. Raises DataError for half a surrogate pair, which UTF-8
        cannot encode.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]: ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. The end of a document gives no text, an invalid byte U+FFFD.

        Raises DataError if a token is not in the vocabulary.
        """
        ...

    def byte_length(self, tokens: Sequence[int]) -> int:
        """Return the number of UTF-8 bytes of the decoded text."""
        ...

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """Return a stream for tokens that follow `after`; the text of `after` is not repeated."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads. Raises StorageError."""
        ...


class BytesConfig(Config):
    """UTF-8 bytes as tokens: 256 bytes and the end of a document, without training."""

    kind: Literal["bytes"] = "bytes"

    def fingerprint(self) -> str:
        return ""

    def build(self, training_text: TrainingText) -> "ByteTokenizer":
        return ByteTokenizer()


class GivenConfig(Config):
    """A tokenizer that the caller passes to `prepare`, such as the tokenizer of a trained model.

    `digest` identifies the tokenizer. So a corpus that was packed with it is found again.
    """

    kind: Literal["given"]
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    vocabulary: int = Field(ge=1, le=2**31)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The config of a tokenizer; `digest` is a SHA-256 of the files that its `save` writes."""
        digest = hashlib.sha256()
        with TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            for path in sorted(Path(folder).iterdir()):
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return cls(kind="given", digest=digest.hexdigest(), vocabulary=tokenizer.vocabulary)

    def fingerprint(self) -> str:
        return ""

    def build(self, training_text: TrainingText) -> Tokenizer:
        raise DataError(
            "data.tokenizer.kind=given: the tokenizer of a model that training begins with; name "
            "that model with --from, or choose bytes, bpe or file"
        )


class ByteTokenizer:
    """Each UTF-8 byte is a token, 0..255; token 256 ends a document."""

    vocabulary = 257
    end_of_document = 256
    begin: tuple[int, ...] = ()
    ends = frozenset({256})

    def encode(self, text: str, continues: bool = False) -> list[int]:
        return list(to_utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        def encoded(text: str) -> Encoded:
            ids_N = np.frombuffer(to_utf8(text), np.uint8)
            return Encoded(ids_N, np.ones_like(ids_N))

        return [encoded(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        check_tokens(tokens, self.vocabulary)
        return bytes(t for t in tokens if t != self.end_of_document).decode("utf-8", "replace")

    def byte_length(self, tokens: Sequence[int]) -> int:
        return len(self.decode(tokens).encode())

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        return TextStream(self.decode, after)

    def save(self, folder: Path) -> None:
        atomic_text(folder / DESCRIPTION, json.dumps({"kind": "bytes"}) + "\n")


def to_utf8(text: str) -> bytes:
    """The text's UTF-8 bytes. Raises DataError for half a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of the text, {text[error.start]!r}, is half a surrogate "
            "pair, which no UTF-8 text holds; was it read with another encoding?"
        ) from error


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raise DataError for a token outside 0..vocabulary-1."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise DataError(f"token {token} must lie in 0..{vocabulary - 1}, the vocabulary")
