"""A writer of safetensors files; an error of the disk becomes a StorageError."""

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
    """Write `tensors` to `path`, a file of the folder that becomes `out`. Raises StorageError."""
    # Imported here: the modules that inspect a run import this one and do without torch.
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # The library raises its own error, not an OSError, for a full disk.
        raise StorageError(
            f"{out}: cannot be written ({error}); nothing was half-written: free some space or "
            "choose another place"
        ) from error
