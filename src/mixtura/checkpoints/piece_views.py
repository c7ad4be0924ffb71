"""Views of the two parts that a `Piece` pairs.

One part belongs to a checkpoint's tensor ("stored"), and the other part belongs to a tensor of
Mixtura's decoder ("ours").
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from mixtura.shapes.families import Piece

if TYPE_CHECKING:
    from torch import Tensor


def is_whole(piece: Piece) -> bool:
    """Whether the piece is a whole stored tensor that equals a whole tensor of ours."""
    return not piece.at and not piece.of and not piece.transposed


def taken(whole: "Tensor", stored: "Tensor", piece: Piece) -> "tuple[Tensor, Tensor]":
    """Return the two parts that a piece pairs, as views of equal shape; `whole` is ours."""
    target = whole if piece.view is None else whole.view(piece.view)
    part = stored if piece.stored_view is None else stored.view(piece.stored_view)
    target, part = target[piece.at], part[piece.of]
    return target, part.mT if piece.transposed else part


def in_groups(piece: Piece) -> Piece | None:
    """Return the piece with views whose last dim is -1; None if it does not take whole rows.

    The returned piece fits a tensor with a column for each weight, and also a tensor with a column
    for each group of 32 weights, such as the scales.
    """
    ours, stored = piece.view, piece.stored_view or piece.shape
    if piece.transposed or len(piece.of) >= len(stored) or len(piece.at) >= len(ours or stored):
        return None
    views = (None if view is None else (*view[:-1], -1) for view in (ours, piece.stored_view))
    view, stored_view = views
    return replace(piece, view=view, stored_view=stored_view)
