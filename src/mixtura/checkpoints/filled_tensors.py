"""Stored tensors put together from ours, in numbers or in groups: the reverse of loading.

A `Piece` says which part of a stored tensor is which part of ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mixtura.checkpoints.piece_coverage import check_stored
from mixtura.checkpoints.piece_views import in_groups, is_whole, taken
from mixtura.kernels.packed.groups import GROUP, Groups
from mixtura.shapes.families import Piece


def filled(pieces: Sequence[Piece], ours: Callable[[Piece], Tensor]) -> Tensor:
    """The stored tensor that these pieces fill; a view where one tensor of ours is all of it.

    Raises ConfigError where the pieces leave an element out.
    """
    check_stored(pieces)
    first = ours(pieces[0])
    if len(pieces) == 1 and is_whole(pieces[0]):
        return first.view(pieces[0].shape)
    whole, name = torch.empty(pieces[0].shape, dtype=first.dtype), pieces[0].ours
    for piece in pieces:
        # Read once for all its parts, since a packed tensor is unpacked at each read.
        if piece.ours != name:
            first, name = ours(piece), piece.ours
        part, filling = taken(first, whole, piece)
        filling.copy_(part)
    return whole


def filled_groups(
    pieces: Sequence[Piece],
    ours: Callable[[Piece], Groups | None],
    stack: Callable[[Piece], tuple[int, ...]],
) -> Groups | None:
    """As `filled`, in groups, row after row; None where the pieces would cut groups.

    `stack` gives the shape of a tensor of ours without its columns: `Groups` holds a flat list of
    rows.
    """
    rows = [one for one in map(in_groups, pieces) if one is not None]
    found: dict[str, Groups] = {}
    for piece in pieces:
        own = found.get(piece.ours) or ours(piece)
        if own is None or len(rows) < len(pieces):
            return None
        found[piece.ours] = own
    bits = found[pieces[0].ours].bits
    if any(own.bits != bits for own in found.values()):
        return None
    q = filled(rows, lambda one: found[one.ours].q_NK.view(*stack(one), -1))
    scale = filled(
        [replace(one, shape=(*one.shape[:-1], one.shape[-1] // GROUP)) for one in rows],
        lambda one: found[one.ours].scale_NG.view(*stack(one), -1),
    )
    return Groups(q.flatten(0, -2), scale.flatten(0, -2), bits)
