"""Compares the tensors of a packed file with the ledger of the model that its header describes.

A header describes the model and lists the tensors. The two may contradict each other even if the
header's digest is correct, since a program may write a wrong header. E experts, H rows of w_in, D
width, F expert width.
"""

from mixtura.errors import CheckpointError
from mixtura.packed.file import PackedFile
from mixtura.packed.header import Entry
from mixtura.shapes import ModelShape

_MATRICES = ("w_in", "w_out")


def check_layers(file: PackedFile) -> None:
    """Raises CheckpointError if the header describes more layers than the file has tensors.

    Call it before the config is parsed: parsing takes time for each layer, and a wrong header may
    describe very many layers.
    """
    layers, entries = file.header.config.get("layers"), len(file.entries)
    if isinstance(layers, int) and layers > entries:
        raise CheckpointError(
            f"{file.path}: its header describes a model of {layers} layers and lists {entries} "
            "tensors; pack the model again"
        )


def check_ledger(file: PackedFile, shape: ModelShape) -> None:
    """Raises CheckpointError, naming the tensor, if a tensor is missing or has another shape."""
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
    """The shape of w_in or w_out in an entry of FFNs; None if the entry does not contain it.

    `dims` is 3 for experts, and 2 for a dense FFN, whose entry has one expert.
    """
    if entry.kind != "experts":
        return None
    experts, hidden, width, expert_width = entry.shape
    own = (hidden, width) if leaf == "w_in" else (width, expert_width)
    if dims == len(own):
        return own if experts == 1 else None
    return (experts, *own)
