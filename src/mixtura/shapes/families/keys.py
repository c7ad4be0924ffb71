"""Reading a config.json: each key by name, with what was expected where it does not fit."""

from collections.abc import Mapping
from typing import Any

from mixtura.errors import ConfigError

_MISSING = object()


class Keys:
    """The keys of a config; every error names the key, what is there, and what was expected."""

    def __init__(self, config: Mapping[str, Any], family: str, path: str = "config.json") -> None:
        self._config, self._family, self._path = config, family, path

    def given(self, key: str, default: Any = None) -> Any:
        """The value; `default` where it is absent or null."""
        value = self._config.get(key)
        return default if value is None else value

    def first(self, *keys: str) -> str:
        """The first of these keys that is there: families rename keys; else the first."""
        return next((key for key in keys if self.given(key) is not None), keys[0])

    def integer(self, key: str, default: Any = _MISSING) -> int:
        return self._typed(key, default, int, "a whole number")

    def number(self, key: str, default: Any = _MISSING) -> float:
        return float(self._typed(key, default, (int, float), "a number"))

    def numbers(self, key: str) -> list[float]:
        found = self._typed(key, _MISSING, (list, tuple), "a list of numbers")
        return [float(value) for value in found]

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        return self._typed(key, default, bool, "true or false")

    def section(self, key: str, default: Any = _MISSING) -> "Keys":
        value = self._typed(key, default, Mapping, "a mapping")
        return Keys(value, self._family, f"{self._path}: {key}")

    def expect(self, key: str, *allowed: Any) -> None:
        """Raises ConfigError for a value that the family can have and our decoder has not."""
        value = self._config.get(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{self._path}: {key}={value!r} in a {self._family} model; Mixtura runs it with "
                f"{key}={' or '.join(map(repr, allowed))} alone"
            )

    def _typed(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self._config.get(key)
        if value is None:
            if default is _MISSING:
                raise ConfigError(
                    f"{self._path}: missing key {key!r}, which a {self._family} model needs"
                )
            return default
        # In Python a bool is an int, and here it is a mistake.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self._path}: {key}={value!r} should be {expected}")
        return value
