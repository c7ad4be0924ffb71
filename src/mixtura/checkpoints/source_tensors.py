"""Reads the tensors of Mixtura's decoder ("ours") from a checkpoint's tensors ("stored").

A `Piece` pairs a part of a stored tensor with the part of a tensor of ours that it fills.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from itertools import groupby

import torch
from torch import Tensor

from mixtura.checkpoints.hf.patchwork import FilePart, Patchwork
from mixtura.checkpoints.piece_views import is_whole, taken
from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError
from mixtura.shapes.families import Piece


def read_weights(
    source: Source,
    pieces: Iterable[Piece],
    shapes: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, Tensor]:
    """Read our tensors by name; `shapes` holds the model's tensors on the device meta.

    `dtypes` gives the dtype of each result. A result is a view of the file if one whole stored
    tensor of that dtype fills it; otherwise it is assembled from its pieces.
    """
    by_ours = _by_ours(pieces)
    patchwork = Patchwork()
    return {
        name: _assembled(source, by_ours[name], like, dtypes[name], patchwork)
        for name, like in shapes.items()
    }


def dtypes_of(
    source: Source,
    pieces: Iterable[Piece],
    shapes: Mapping[str, Tensor],
    gates: Container[str],
    *,
    dtype: torch.dtype | None,
    gate_dtype: torch.dtype | None,
) -> dict[str, torch.dtype]:
    """Choose the dtype of each tensor of ours.

    Parameters other than gates get `dtype`. With `dtype` None they get the dtype that they are
    stored in; if they are stored in several dtypes, CheckpointError is raised. A gate gets a dtype
    that holds its stored dtype, `dtype` and `gate_dtype` without rounding. Buffers, such as a
    choosing bias, get the dtype that they have in `shapes`.
    """
    by_ours = _by_ours(pieces)
    weights = [name for name, like in shapes.items() if _is_weight(like) and name not in gates]
    whole = dtype or _common_dtype(source, [one for name in weights for one in by_ours[name]])
    found = {name: like.dtype for name, like in shapes.items()}
    found |= dict.fromkeys(weights, whole)
    for name, like in shapes.items():
        if name in gates and _is_weight(like):
            own = source.dtype_of(by_ours[name][0].stored)
            for also in (dtype, gate_dtype):
                own = own if also is None else torch.promote_types(own, also)
            found[name] = own
    return found


def _by_ours(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.ours].append(piece)
    return found


def _common_dtype(source: Source, pieces: Iterable[Piece]) -> torch.dtype:
    """The dtype that all pieces are stored in. Raises CheckpointError if their dtypes differ."""
    first: tuple[str, torch.dtype] | None = None
    for piece in pieces:
        found = source.dtype_of(piece.stored)
        if first is None:
            first = (piece.stored, found)
        if found != first[1]:
            raise CheckpointError(
                f"{source.path}: {first[0]} is stored in {_named(first[1])} and {piece.stored} "
                f"in {_named(found)}; say which to compute in with a dtype"
            )
    assert first is not None, "every model has weights"
    return first[1]


def _is_weight(tensor: Tensor) -> bool:
    """True for parameters, false for buffers."""
    return isinstance(tensor, torch.nn.Parameter)


def _assembled(
    source: Source,
    pieces: list[Piece],
    like: Tensor,
    dtype: torch.dtype,
    patchwork: Patchwork,
) -> Tensor:
    if len(pieces) == 1 and is_whole(pieces[0]):
        return source.read(pieces[0].stored).view(like.shape).to(dtype)
    parts = _file_parts(source, pieces, like, dtype)
    if parts:
        return patchwork.tensor(tuple(like.shape), dtype, parts)
    whole = torch.empty(like.shape, dtype=dtype)
    for name, parts in groupby(pieces, lambda piece: piece.stored):
        # A stored tensor is read once for all of its pieces, because a read may have to unpack it.
        stored = source.read(name)
        for piece in parts:
            target, part = taken(whole, stored, piece)
            target.copy_(part)
    return whole


def _file_parts(
    source: Source, pieces: list[Piece], like: Tensor, dtype: torch.dtype
) -> list[FilePart]:
    """List the byte ranges of files that form a tensor of ours.

    The list is empty if a piece would have to be converted or reordered.
    """
    parts: list[FilePart] = []
    for piece in pieces:
        place = source.place_of(piece.stored)
        if (
            place is None
            or piece.of
            or piece.view
            or piece.transposed
            or source.dtype_of(piece.stored) != dtype
        ):
            return []
        target = like[piece.at]
        if not target.is_contiguous():
            return []
        size = target.numel() * dtype.itemsize
        parts.append(
            FilePart(place.file, place.offset, size, int(target.storage_offset()) * dtype.itemsize)
        )
    return parts


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
