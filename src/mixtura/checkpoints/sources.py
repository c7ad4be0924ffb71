"""Opens a Hugging Face folder or a GGUF file, without reading a tensor or importing torch."""

from pathlib import Path

from mixtura.checkpoints.hf.dequantised import dequantised
from mixtura.checkpoints.hf.folder import CONFIG, HFFolder
from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError


def open_source(path: Path) -> Source:
    """Open a Hugging Face folder or a GGUF file. Raises CheckpointError if `path` is neither."""
    if path.suffix == ".gguf":
        from mixtura.checkpoints.gguf import GGUFSource

        return GGUFSource(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give one that holds a model")
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a model; give a folder with {CONFIG}, or a .gguf file")
    return dequantised(HFFolder(path))
