"""What kind of model lies at a path, by its files' names alone."""

from pathlib import Path
from typing import Literal

from mixtura.packed.folder import FILE
from mixtura.runs.file_names import RECIPE

ModelKind = Literal["packed", "run", "gguf", "hf"]
GGUF = ".gguf"


def what_is(path: Path) -> ModelKind:
    """A packed folder, a run, a GGUF file, or a Hugging Face folder.

    "hf" stands for anything else too, and opening it says what is missing.
    """
    if (path / FILE).is_file():
        return "packed"
    if (path / RECIPE).is_file():
        return "run"
    return "gguf" if path.suffix == GGUF else "hf"
