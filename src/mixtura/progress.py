"""The type of functions that show the progress of long work."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""a function of a stage's name, the amount that is done, and the total amount (0 if unknown)"""


def silent(stage: str, done: int, total: int) -> None:
    """A function of type Progress that shows nothing."""
