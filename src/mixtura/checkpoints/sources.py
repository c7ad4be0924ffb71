"""A folder or a file of somebody else's as a Source; no tensor is read, and torch not imported."""

from pathlib import Path

from mixtura.checkpoints.hf.dequantised import dequantised
from mixtura.checkpoints.hf.folder import CONFIG, HFFolder
from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError


def open_source(path: Path) -> Source:
    """A folder or a GGUF file, ready to be read. Raises CheckpointError where it is neither."""
    if path.suffix == ".gguf":
        from mixtura.checkpoints.gguf import GGUFSource

        return GGUFSource(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give one that holds a model")
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a model; give a folder with {CONFIG}, or a .gguf file")
    return dequantised(HFFolder(path))
