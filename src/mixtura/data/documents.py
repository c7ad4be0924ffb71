"""The protocol of a source of text, and the documents and skipped items that it yields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class Span(NamedTuple):
    """A part of a text that has one domain; it ends where the next span starts."""

    start: int
    domain: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name and a domain.

    `cut`, if given, divides the text into spans, whose domains then replace `domain`.
    """

    name: str
    domain: str
    text: str
    cut: Callable[[str], list[Span]] | None = None

    def spans(self) -> list[Span]:
        """Return the text's spans in order; the first span starts at 0."""
        return self.cut(self.text) if self.cut else [Span(0, self.domain)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, folder or row that a source left out, and the reason."""

    name: str
    reason: str


class Source(Protocol):
    """A source of documents. Each method raises DataError if the source does not exist."""

    @property
    def kind(self) -> str: ...

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        """The unit of `size`."""
        ...

    def size(self) -> int:
        """Return the approximate size of all that `read` yields, for progress; 0 if unknown."""
        ...

    def fingerprint(self) -> str:
        """Return a string that changes whenever the documents that `read` yields change."""
        ...

    def read(self) -> Iterator[Document | Skipped]:
        """Yield documents and skipped items, in an order that is the same in every run."""
        ...
