"""Compares a packed file's tensors with the ledger of the model in its header. No torch.

The header's digest protects only from damage: a program may write a wrong header. E experts, H rows
of w_in, D width, F expert width.
"""

from mixtura.errors import CheckpointError
from mixtura.packed.file import PackedFile
from mixtura.packed.header import Entry
from mixtura.shapes import ModelShape

_MATRICES = ("w_in", "w_out")


def check_layers(file: PackedFile) -> None:
    """Before the config is parsed, which takes time for each of its layers."""
    layers, entries = file.header.config.get("layers"), len(file.entries)
    if isinstance(layers, int) and layers > entries:
        raise CheckpointError(
            f"{file.path}: its header describes a model of {layers} layers and lists {entries} "
            "tensors; pack the model again"
        )


def check_ledger(file: PackedFile, shape: ModelShape) -> None:
    """Raises CheckpointError, by name, for a tensor that is missing or misshapen."""
    left = dict(file.entries)
    for one in shape.tensors():
        entry = left.pop(one.name, None)
        found = None if entry is None else entry.shape
        module, _, leaf = one.name.rpartition(".")
        if entry is None and leaf in _MATRICES and module in file.entries:
            left.pop(module, None)
            found = _matrix(file.entries[module], leaf, len(one.shape))
        if found != one.shape:
            raise CheckpointError(
                f"{file.path}: {one.name} is {'absent' if found is None else found} there, and "
                f"the model that its header describes has {one.shape}; pack the model again"
            )


def _matrix(entry: Entry, leaf: str, dims: int) -> tuple[int, ...] | None:
    """The shape of w_in or w_out in an entry of FFNs; a dense FFN's has no dim of experts."""
    if entry.kind != "experts":
        return None
    experts, hidden, width, expert_width = entry.shape
    own = (hidden, width) if leaf == "w_in" else (width, expert_width)
    if dims == len(own):
        return own if experts == 1 else None
    return (experts, *own)
