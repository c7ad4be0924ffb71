"""Views of the two parts that a `Piece` pairs: one of our tensor, one of the stored tensor."""

from dataclasses import replace
from typing import TYPE_CHECKING

from mixtura.shapes.families import Piece

if TYPE_CHECKING:
    from torch import Tensor


def is_whole(piece: Piece) -> bool:
    """Whether the whole stored tensor is our whole tensor, element by element."""
    return not piece.at and not piece.of and not piece.transposed


def taken(whole: "Tensor", stored: "Tensor", piece: Piece) -> "tuple[Tensor, Tensor]":
    """Two views of one shape: the part of ours, and the part of the stored tensor that fills it."""
    target = whole if piece.view is None else whole.view(piece.view)
    part = stored if piece.stored_view is None else stored.view(piece.stored_view)
    target, part = target[piece.at], part[piece.of]
    return target, part.mT if piece.transposed else part


def in_groups(piece: Piece) -> Piece | None:
    """The same piece with one column a group; None where it does not keep rows whole."""
    ours, stored = piece.view, piece.stored_view or piece.shape
    if piece.transposed or len(piece.of) >= len(stored) or len(piece.at) >= len(ours or stored):
        return None
    views = (None if view is None else (*view[:-1], -1) for view in (ours, piece.stored_view))
    view, stored_view = views
    return replace(piece, view=view, stored_view=stored_view)
