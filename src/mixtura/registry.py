"""Values by name, to which other packages may add; without torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

T = TypeVar("T")


class Registry(Generic[T]):
    """Routers, backends or other values by name.

    An installed package adds a name by an entry point of the `group`. The entry point leads to a
    module or a function that adds the value when it is imported:

        [project.entry-points."mixtura.routers"]
        my_router = "my_package.my_router"
    """

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._values: dict[str, T] = {}

    @property
    def values(self) -> Mapping[str, T]:
        """The values that were added so far."""
        return MappingProxyType(self._values)

    def add(self, name: str, value: T) -> None:
        """Add a value. Raises ValueError for a name in use."""
        if name in self._values:
            raise ValueError(f"{self.what}={name!r} is registered already; choose another name")
        self._values[name] = value

    def remove(self, name: str) -> None:
        """Remove a name that was added."""
        del self._values[name]

    def get(self, name: object) -> T:
        """The value of a name. Raises ValueError for an unknown name, with the known ones."""
        if not isinstance(name, str) or (name not in self._values and not self._load(name)):
            raise ValueError(
                f"{self.what}={name!r:.60} is unknown; choose one of {', '.join(self.names())}, or "
                "import the package that registers it"
            )
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """All known names, those of installed packages included."""
        announced = (point.name for point in self._announced())
        return tuple(dict.fromkeys([*self._values, *announced]))

    def _load(self, name: str) -> bool:
        for point in self._announced():
            if point.name == name:
                point.load()
        return name in self._values

    def _announced(self) -> "EntryPoints":
        # Here, as importing it takes longer than all that a known name needs.
        from importlib.metadata import entry_points

        return entry_points(group=self.group)
