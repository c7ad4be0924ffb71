"""What a source hands over: documents, and the names of what it could not use."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class Span(NamedTuple):
    """A stretch of text of one domain, from character `start` to the next span's."""

    start: int
    domain: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a name. `cut`, where there is one, splits it into spans of several domains."""

    name: str
    domain: str
    text: str
    cut: Callable[[str], list[Span]] | None = None

    def spans(self) -> list[Span]:
        """The text's spans in order; the first starts at 0."""
        return self.cut(self.text) if self.cut else [Span(0, self.domain)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, folder or row that was left out, and why."""

    name: str
    reason: str


class Source(Protocol):
    """Where documents come from. Each method raises DataError if there is no such place."""

    @property
    def kind(self) -> str: ...

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        """What `size` counts."""
        ...

    def size(self) -> int:
        """How much `read` will yield, roughly, for progress; 0 where nobody knows."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever `read` would yield something else."""
        ...

    def read(self) -> Iterator[Document | Skipped]:
        """Documents in an order that does not change from run to run."""
        ...
