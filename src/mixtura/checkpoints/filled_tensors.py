"""Assembles a checkpoint's tensors from the tensors of Mixtura's decoder: the reverse of loading.

A stored tensor has the name and the layout of a checkpoint, and a tensor of ours has those of the
decoder. A `Piece` pairs a part of a stored tensor with the part of a tensor of ours that holds the
same numbers. A group is 32 quantised weights of a row that share a scale. N rows and K columns of a
matrix, G = K/32 groups of a row.
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
    """Assemble the stored tensor that `pieces` fill; `ours` reads the tensor that a piece names.

    The result is a view if one whole tensor of ours fills the stored tensor. Raises ConfigError if
    the pieces do not fill each element once.
    """
    check_stored(pieces)
    first = ours(pieces[0])
    if len(pieces) == 1 and is_whole(pieces[0]):
        return first.view(pieces[0].shape)
    whole, name = torch.empty(pieces[0].shape, dtype=first.dtype), pieces[0].ours
    for piece in pieces:
        # A tensor is read once for all of its pieces, because a read may have to unpack it.
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
    """Assemble a stored tensor from quantised groups; all dims but the last are flattened to rows.

    `ours` reads the groups of the tensor that a piece names. In `Groups` all dims of that tensor
    but the last are flattened, and `stack` returns the sizes of these dims. Returns None if a piece
    does not take whole rows, if a tensor has no groups, or if the tensors differ in bits.
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
