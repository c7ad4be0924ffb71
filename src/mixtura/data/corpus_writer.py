"""Writes one side of a corpus; `token_file.py` describes the files. N tokens of a document."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mixtura.data.documents import Document, Span
from mixtura.data.split import Side
from mixtura.data.token_file import SideMeta, token_dtype
from mixtura.errors import DataError
from mixtura.tokenizers.characters import byte_offsets
from mixtura.tokenizers.tokenizer import Encoded, Tokenizer

# The number of a domain and the width of a token (its UTF-8 bytes) are stored in one byte each.
_LIMIT = 256


class DomainNumbers:
    """Numbers the domains in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __getitem__(self, domain: str) -> int:
        """Return the number of `domain`. Raises DataError for the 257th domain."""
        number = self._numbers.setdefault(domain, len(self._numbers))
        if number >= _LIMIT:
            raise DataError(
                f"{domain!r} is the {number + 1}th domain and {_LIMIT} are possible; "
                "label documents by something coarser"
            )
        return number

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._numbers)


class SideWriter:
    """Appends documents to the files of one side; a context manager that closes the files."""

    def __init__(
        self, folder: Path, side: Side, tokenizer: Tokenizer, numbers: DomainNumbers
    ) -> None:
        self._stack = ExitStack()
        self._tokens, self._domains, self._widths, self._starts = (
            self._stack.enter_context((folder / f"{side}.{part}").open("wb"))
            for part in ("tokens", "domains", "widths", "starts")
        )
        self._dtype = token_dtype(tokenizer.vocabulary)
        self._end = tokenizer.end_of_document
        self._numbers = numbers
        self._tokens_written = 0
        self._documents = 0
        self._domain_bytes = np.zeros(_LIMIT, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def append(self, document: Document, encoded: Encoded) -> None:
        """Write a document and its end token. Raises DataError if a token has over 255 bytes."""
        widest = int(encoded.bytes_N.max(initial=0))
        if widest >= _LIMIT:
            raise DataError(
                f"{document.name}: a token stands for {widest} bytes and may stand for at most "
                f"{_LIMIT - 1}; use another tokenizer"
            )
        spans = document.spans()
        numbers = np.array([self._numbers[span.domain] for span in spans], np.uint8)
        domains_N = numbers[_spans_of(encoded, document.text, spans)]
        self._starts.write(np.array([self._tokens_written], "<i8").tobytes())
        self._tokens.write(encoded.ids_N.astype(self._dtype).tobytes())
        self._widths.write(encoded.bytes_N.astype(np.uint8).tobytes())
        self._domains.write(domains_N.tobytes())
        # The end token adds no text; its domain is that of the document's last span.
        self._tokens.write(np.array([self._end], self._dtype).tobytes())
        self._widths.write(b"\0")
        self._domains.write(numbers[-1:].tobytes())
        self._tokens_written += len(domains_N) + 1
        self._documents += 1
        for number in set(numbers.tolist()):
            inside_N = domains_N == number
            self._domain_bytes[number] += encoded.bytes_N[inside_N].sum(dtype=np.int64)

    def meta(self) -> SideMeta:
        return SideMeta(
            tokens=self._tokens_written,
            documents=self._documents,
            domain_bytes={
                name: int(self._domain_bytes[self._numbers[name]]) for name in self._numbers.names
            },
        )


def _spans_of(encoded: Encoded, text: str, spans: Sequence[Span]) -> NDArray[np.integer]:
    """Return, for each token, the index of the span that contains the token's last byte."""
    if len(spans) == 1:
        return np.zeros(len(encoded.ids_N), np.uint8)
    span_starts = byte_offsets(text)[[span.start for span in spans]]
    last_byte_N = np.cumsum(encoded.bytes_N, dtype=np.int64) - 1
    # A first token that adds no byte would get the index -1; it belongs to the first span.
    return (np.searchsorted(span_starts, last_byte_N, side="right") - 1).clip(min=0)
