"""How the processes of one training run communicate; each process is a rank.

This module does not import torch.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """One rank's interface to all ranks. Every rank must make the same calls in the same order."""

    @property
    def index(self) -> int:
        """This rank's number, from 0."""
        ...

    @property
    def count(self) -> int:
        """The number of ranks."""
        ...

    def sum(self, of: T) -> T:
        """Every rank gets the sum of the tensors of all ranks; `of` may be overwritten."""
        ...

    def barrier(self) -> None:
        """Wait until every rank has called `barrier`."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """The ranks of a run that has only one process."""

    index: int = 0
    count: int = 1

    def sum(self, of: T) -> T:
        return of

    def barrier(self) -> None:
        pass


ONE_RANK = OneRank()
