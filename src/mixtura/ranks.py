"""The processes of one run, each of which is a rank; without torch."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """One rank's view of a run's processes. Every rank makes the same calls in the same order."""

    @property
    def index(self) -> int:
        """This rank's number, from 0."""
        ...

    @property
    def count(self) -> int: ...

    def sum(self, of: T) -> T:
        """A tensor's sum over all ranks, on every rank; the tensor given may be overwritten."""
        ...

    def barrier(self) -> None:
        """Return when every rank has called this."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """The ranks of a run with a single process."""

    index: int = 0
    count: int = 1

    def sum(self, of: T) -> T:
        return of

    def barrier(self) -> None:
        pass


ONE_RANK = OneRank()
