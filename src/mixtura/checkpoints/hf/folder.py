"""Reads a Hugging Face folder: its config.json, and its safetensors file or shards."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mixtura.checkpoints.source import Place, Source, StoredTensor
from mixtura.errors import CheckpointError
from mixtura.json_reader import MOST_BYTES, MOST_BYTES_LISTED, read_object
from mixtura.tensor_files.header import read_header

if TYPE_CHECKING:
    from safetensors import safe_open
    from torch import Tensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class HFFolder(Source):
    """A Hugging Face folder, whose tensors are views of memory-mapped files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / CONFIG, "a config.json")
        self._shards = {file: _Shard(file) for file in _files(path)}
        self.tensors = {
            name: tensor
            for shard in self._shards.values()
            for name, tensor in shard.tensors.items()
        }
        _check_index(path, self.tensors)

    def read(self, name: str) -> "Tensor":
        return self._shards[self.tensors[name].file].read(name)

    def place_of(self, name: str) -> Place | None:
        stored = self.tensors[name]
        return Place(stored.file, self._shards[stored.file].begin_of(name))


class _Shard:
    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._spans = read_header(file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; copy or download it again") from error
        self.tensors = {
            name: StoredTensor(name, span.shape, span.dtype, file, span.bytes)
            for name, span in self._spans.items()
        }

    def begin_of(self, name: str) -> int:
        return self._spans[name].start

    def read(self, name: str) -> "Tensor":
        from safetensors import SafetensorError

        try:
            return self._handle.get_tensor(name)
        except SafetensorError as error:
            dtype = self._spans[name].dtype
            raise CheckpointError(
                f"{self.file}: {name} cannot be read as {dtype} ({error}); convert it to BF16, F16 "
                "or F32"
            ) from error

    @cached_property
    def _handle(self) -> "safe_open":
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.file}: not a whole safetensors file ({error}); copy or download it again"
            ) from error


def read_json(path: Path, what: str, most: int = MOST_BYTES) -> Mapping[str, Any]:
    """Read a JSON object of at most `most` bytes; `what` describes the file in an error message.

    Configs of models with Mamba-2 may contain the number Infinity; see `parse_json`. Raises
    CheckpointError if the file is missing or holds no JSON object.
    """
    try:
        return read_object(path, CheckpointError, most, infinity=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the folder needs {what}") from None


def _files(folder: Path) -> list[Path]:
    """List the files with weights.

    These are the files that the index names. Without an index it is model.safetensors, or else the
    folder's only safetensors file. Raises CheckpointError if the folder has no safetensors file, or
    several of other names without an index.
    """
    if (folder / INDEX).exists():
        return [_inside(folder, name) for name in sorted(set(_weight_map(folder).values()))]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{folder}: holds {len(found)} safetensors files and no {INDEX} that says which "
            "belong together; fetch the index too"
        )
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: weights in pickle can run code when they are loaded, so "
            "Mixtura reads safetensors alone; convert them where you trust them"
        )
    raise CheckpointError(f"{folder}: holds no safetensors file; give a folder with weights")


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX, "an index of its shards", MOST_BYTES_LISTED)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{folder / INDEX}: weight_map should name a file for each tensor")
    return found


def _inside(folder: Path, name: str) -> Path:
    """Return a shard's path. Raises CheckpointError if it leaves the folder or does not exist."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or len(parts.parts) != 1 or "\\" in name or name == "..":
        raise CheckpointError(
            f"{folder / INDEX}: names the file {name!r}, which leaves the folder; shards lie "
            "beside their index"
        )
    try:
        there = (folder / name).exists()
    except OSError:
        # The operating system refuses the name, for example because it is too long.
        there = False
    if not there:
        raise CheckpointError(f"{folder / INDEX}: names {name}, which is not in the folder")
    return folder / name


def _check_index(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    if not (folder / INDEX).exists():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors:
            raise CheckpointError(f"{folder / INDEX}: says that {name} is in {file}; it is not")
        if tensors[name].file.name != file:
            raise CheckpointError(
                f"{folder / INDEX}: says that {name} is in {file}; it is in "
                f"{tensors[name].file.name}"
            )
