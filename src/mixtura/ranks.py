"""The processes of one run, of which each is a rank; without torch."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """What code needs to know of the other processes. Every rank makes the same calls in turn."""

    @property
    def index(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def count(self) -> int: ...

    def sum(self, of: T) -> T:
        """A tensor's sum over all ranks, on each of them; the tensor given may be overwritten."""
        ...

    def barrier(self) -> None:
        """Return when every rank has come here."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """One process, which is all there is."""

    index: int = 0
    count: int = 1

    def sum(self, of: T) -> T:
        return of

    def barrier(self) -> None:
        pass


ONE_RANK = OneRank()
