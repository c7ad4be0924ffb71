"""Writes safetensors files; raises StorageError if the disk is full or refuses to write."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mixtura.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    out: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` to the file `path`, whose folder is temporary and is later renamed to `out`.

    Raises StorageError, whose message names `out`, if the file cannot be written.
    """
    # Imported here, because commands that inspect a run import this module and must not load torch.
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # If the disk is full, safetensors raises SafetensorError, not OSError.
        raise StorageError(
            f"{out}: cannot be written ({error}); nothing was half-written: free some space or "
            "choose another place"
        ) from error
