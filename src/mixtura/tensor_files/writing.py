"""Writing a safetensors file, with what the disk says as an error of ours."""

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
    """Write them to `path`, a file of the folder that becomes `out`. Raises StorageError."""
    # Not before: whoever inspects a run needs no torch.
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # The library has no OSError of its own for a full disk.
        raise StorageError(
            f"{out}: cannot be written ({error}); nothing was half-written: free some space or "
            "choose another place"
        ) from error
