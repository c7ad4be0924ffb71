"""The metadata of a GGUF file; a value's type is checked when the value is read."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixtura.errors import CheckpointError


class Metadata:
    """Metadata values by key; the architecture's name is put before a key with a leading dot.

    The methods raise CheckpointError, naming the key, for a value that is missing or has another
    type.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values, self._path = values, path
        self.architecture = self.text("general.architecture")

    def key(self, key: str) -> str:
        """Return the key that the file has: the architecture's name is put before a leading dot."""
        return self.architecture + key if key.startswith(".") else key

    def __contains__(self, key: str) -> bool:
        return self.key(key) in self._values

    def text(self, key: str, default: str | None = None) -> str:
        return self._of(key, str, "a string", default)

    def flag(self, key: str, default: bool) -> bool:
        return self._of(key, bool, "true or false", default)

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number."""
        value = self._of(key, (int, float), "a number", default)
        if isinstance(value, bool) or not np.isfinite(value):
            raise self.error(key, f"{value!r}, expected a finite number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Read a whole number of 1 or more; numbers listed for each layer must all be equal."""
        value = self._values.get(self.key(key), default)
        if isinstance(value, np.ndarray):
            several = np.unique(value)
            if len(several) != 1:
                listed = ", ".join(map(str, several[:4]))
                raise self.error(key, f"{listed} in different layers, expected one number for all")
            value = several[0].item()
        if value is None:
            raise self._missing(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, f"{value!r:.60}, expected a whole number of 1 or more")
        return value

    def token(self, key: str, vocabulary: int) -> int | None:
        """Read the number of a token of the vocabulary; None if the file states no token."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            # Some writers store -1 or the largest uint32 if there is no such token.
            if value in {-1, 2**32 - 1}:
                return None
            if 0 <= value < vocabulary:
                return value
        raise self.error(key, f"{value!r:.60}, expected a token of 0..{vocabulary - 1}")

    def texts(self, key: str) -> list[str]:
        return self._of(key, list, "a list of strings", None)

    def whole_numbers(self, key: str) -> list[int]:
        value = self._of(key, np.ndarray, "a list of whole numbers", None)
        if value.dtype.kind not in "iu":
            raise self.error(key, f"a list of {value.dtype}, expected whole numbers")
        return value.tolist()

    def numbers(self, key: str) -> list[float]:
        value = self._of(key, np.ndarray, "a list of numbers", None)
        if value.dtype.kind not in "iuf":
            raise self.error(key, f"a list of {value.dtype}, expected numbers")
        return value.tolist()

    def error(self, key: str, problem: str) -> CheckpointError:
        """An error with the text `FILE: KEY is PROBLEM`."""
        return CheckpointError(f"{self.place(key)} is {problem}")

    def place(self, key: str) -> str:
        """The start of an error message about a key: `FILE: KEY`."""
        return f"{self._path}: {self.key(key)}"

    def _missing(self, key: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: lacks the key {self.key(key)}; convert the model to GGUF anew"
        )

    def _of(self, key: str, kind: Any, expected: str, default: Any) -> Any:
        value = self._values.get(self.key(key), default)
        if value is None:
            raise self._missing(key)
        if not isinstance(value, kind):
            raise self.error(key, f"{value!r:.60}, expected {expected}")
        return value


def nearest(name: str, known: Mapping[str, Any]) -> CheckpointError:
    """An error about a tensor that the model lacks; the message states the most similar name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; the nearest is {near[0]}" if near else ""
    return CheckpointError(f"no tensor {name} among the {len(known)} of the model{hint}")
