"""Progress of long work."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much is done, and how much there is (0 where that is unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""
