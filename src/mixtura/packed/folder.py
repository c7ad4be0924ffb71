"""The name of the file that makes a folder a packed one."""

from pathlib import Path

FILE = "model.mixtura"


def is_packed(folder: Path) -> bool:
    """Whether it holds a packed model."""
    return (folder / FILE).is_file()
