"""Finds the kind of model at a path, by file names alone."""

from pathlib import Path
from typing import Literal

from mixtura.packed.folder import FILE
from mixtura.runs.file_names import RECIPE

ModelKind = Literal["packed", "run", "gguf", "hf"]
GGUF = ".gguf"


def what_is(path: Path) -> ModelKind:
    """Return the kind of model at `path`.

    Any path of no other kind counts as "hf", a Hugging Face folder. If it holds no model, the
    attempt to open it raises an error that names the missing file.
    """
    if (path / FILE).is_file():
        return "packed"
    if (path / RECIPE).is_file():
        return "run"
    return "gguf" if path.suffix == GGUF else "hf"
