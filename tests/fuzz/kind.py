"""A kind of file that strangers may hand us: how a case of it is made, and how it is read."""

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import ClassVar


class Kind(ABC):
    """One kind, as an instance that can be pickled; `make_valid` runs once, the rest once a case.

    A kind lies in a module of `tests/fuzz/kinds/`, which lists it in KINDS.
    """

    name: ClassVar[str]
    seconds: ClassVar[float] = 10.0
    """that one case may take"""
    fast_cases: ClassVar[int] = 80
    """in the default tests"""

    @abstractmethod
    def make_valid(self, folder: Path) -> None:
        """Write valid files into an empty folder; `mutate` gets the folder as `valid`."""

    @abstractmethod
    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        """Write one spoilt case into the empty folder `case`, by what `rng` draws alone."""

    @abstractmethod
    def parse(self, case: Path) -> object:
        """The first parse alone, such as `json.loads`: a case past it counts as such.

        What it raises is no bug: `read` meets the same files.
        """

    @abstractmethod
    def read(self, case: Path) -> object:
        """What a command does with such files: raises nothing but MixturaError.

        It is also called with a copy of `valid`, which it must accept.
        """
