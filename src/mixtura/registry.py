"""Registries of values by name, to which other packages can add.

This module does not import torch.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

T = TypeVar("T")


class Registry(Generic[T]):
    """Values of one kind by name, such as routers or backends; `what` is the kind's name.

    An installed package adds a value through an entry point in the group `group`. The entry point
    refers to a module, or a name in a module, that calls `add` when it is imported:

        [project.entry-points."mixtura.routers"]
        my_router = "my_package.my_router"
    """

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._values: dict[str, T] = {}

    @property
    def values(self) -> Mapping[str, T]:
        """The values that have been added so far, by name."""
        return MappingProxyType(self._values)

    def add(self, name: str, value: T) -> None:
        """Add a value. Raises ValueError if the name is already in use."""
        if name in self._values:
            raise ValueError(f"{self.what}={name!r} is registered already; choose another name")
        self._values[name] = value

    def remove(self, name: str) -> None:
        """Remove a name and its value."""
        del self._values[name]

    def get(self, name: object) -> T:
        """The value of a name; if needed, the package that announces the name is imported.

        Raises ValueError for an unknown name, and lists the known names.
        """
        if not isinstance(name, str) or (name not in self._values and not self._load(name)):
            raise ValueError(
                f"{self.what}={name!r:.60} is unknown; choose one of {', '.join(self.names())}, or "
                "import the package that registers it"
            )
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """All known names, including those that installed packages announce by entry points."""
        announced = (point.name for point in self._announced())
        return tuple(dict.fromkeys([*self._values, *announced]))

    def _load(self, name: str) -> bool:
        for point in self._announced():
            if point.name == name:
                point.load()
        return name in self._values

    def _announced(self) -> "EntryPoints":
        # Imported here: this import takes longer than the look-up of an added name.
        from importlib.metadata import entry_points

        return entry_points(group=self.group)
