"""What a source yields: documents, and the names of what it skipped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class Span(NamedTuple):
    """A stretch of text of one domain, from character `start` to the next span's."""

    start: int
    domain: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name; `cut`, if given, splits the text into spans of several domains."""

    name: str
    domain: str
    text: str
    cut: Callable[[str], list[Span]] | None = None

    def spans(self) -> list[Span]:
        """The text's spans in order; the first starts at 0."""
        return self.cut(self.text) if self.cut else [Span(0, self.domain)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, folder or row that a source left out, and the reason."""

    name: str
    reason: str


class Source(Protocol):
    """Where documents come from. Each method raises DataError if the place does not exist."""

    @property
    def kind(self) -> str: ...

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        """The unit of `size`."""
        ...

    def size(self) -> int:
        """About how much `read` will yield, for progress; 0 where that is unknown."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever `read` would yield other documents."""
        ...

    def read(self) -> Iterator[Document | Skipped]:
        """Documents in an order that does not change from run to run."""
        ...
