"""Reads the matrices of Mixtura's decoder as quantised groups, from a checkpoint of any format.

A group is 32 weights of a row that share a scale. A stored tensor has the name and the layout of
the checkpoint. A `Piece` pairs a part of a stored tensor with a part of a tensor of the decoder. N
rows and K columns of a matrix, G = K/32 groups of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.checkpoints.source import Source
from mixtura.checkpoints.source_tensors import read_weights
from mixtura.kernels.packed.groups import Groups, quantise
from mixtura.shapes.families import Piece
from mixtura.shapes.families.family import Part
from mixtura.shapes.storage.numbers import GROUP, Bits, up

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


class _MatrixPart(NamedTuple):
    """A part of a matrix, and the piece that fills it."""

    piece: Piece
    at: Part
    """where in the matrix, or in the view of the piece, the part is"""
    expert: int | None
    """which expert of the piece's stack the part is; None if the piece is no stack"""


class GroupReader:
    """Reads one matrix at a time: stored groups are copied exactly, other weights are quantised.

    A stored tensor that holds many experts stays in memory until `release`, so that it is read only
    once for all of them.
    """

    def __init__(self, source: Source, pieces: Iterable[Piece]) -> None:
        self._source = source
        self.pieces = tuple(pieces)
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            self._pieces[piece.ours].append(piece)
        self._tensors: dict[str, Tensor] = {}
        self._groups: dict[tuple[str, Bits | None], Groups | None] = {}
        self.exact: set[str] = set()
        """names of stored tensors whose integers and scales were copied exactly"""
        self.requantised: dict[str, Bits] = {}
        """names of stored tensors that were unpacked and quantised again, with the new bits"""

    def plain(self, name: str, like: Tensor) -> Tensor:
        """Read a tensor without quantising it; a buffer gets the dtype of `like`."""
        dtypes, pieces = {name: self.plain_dtype(name, like)}, self._pieces[name]
        return read_weights(self._source, pieces, {name: like}, dtypes)[name]

    def plain_dtype(self, name: str, like: Tensor) -> torch.dtype:
        """The dtype of the tensor that `plain` returns."""
        return self.stored_dtype(name) if isinstance(like, torch.nn.Parameter) else like.dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._source.dtype_of(self._pieces[name][0].stored)

    def pieces_of(self, name: str) -> list[Piece]:
        """The pieces that fill a tensor of the decoder."""
        return self._pieces[name]

    def stored_bits(self, names: Iterable[str]) -> Bits:
        """The fewest bits that keep the stored precision of all named tensors of the decoder."""
        return max(
            self._source.stored_bits(piece.stored) for name in names for piece in self._pieces[name]
        )

    def matrix(
        self, name: str, shape: tuple[int, int], bits: Bits, expert: int | None = None
    ) -> Groups:
        """Read a matrix of the decoder, or one expert's matrix of a stack, as groups.

        Each row is padded with zeros to a multiple of 32. Raises ConfigError, naming the stored
        tensor, for weights that cannot be quantised.
        """
        rows, columns = shape[0], up(shape[1], GROUP)
        parts = list(self._parts(name, expert))
        if len(parts) == 1 and not parts[0].at and parts[0].piece.view is None:
            q, scale = self._read(parts[0], bits)
            return Groups(q.view(rows, columns), scale.view(rows, -1), bits)
        whole = Groups(
            torch.empty(rows, columns, dtype=torch.int8),
            torch.empty(rows, columns // GROUP, dtype=torch.float16),
            bits,
        )
        for part in parts:
            self._fill(whole, part)
        return whole

    def release(self) -> None:
        """Free the stored tensors that were kept because they hold many experts."""
        self._tensors.clear()
        self._groups.clear()

    def _parts(self, name: str, expert: int | None) -> Iterator[_MatrixPart]:
        """The pieces that fill a matrix, or one expert's matrix of a stack."""
        for piece in self._pieces[name]:
            first = piece.at[0] if piece.at else slice(None)
            if expert is None:
                yield _MatrixPart(piece, piece.at, None)
            elif first == slice(None):
                assert piece.view is None, "a stack of experts has no view"
                yield _MatrixPart(piece, piece.at[1:], expert)
            elif first == expert:
                yield _MatrixPart(piece, piece.at[1:], None)

    def _read(self, part: _MatrixPart, bits: Bits) -> tuple[Tensor, Tensor]:
        """The integers and the scales of a part."""
        piece, expert = part.piece, part.expert
        return (
            self._exact(piece, expert, bits)
            or self._requantised(piece, expert, bits)
            or self._quantised(piece, expert, bits)
        )

    def _fill(self, whole: Groups, part: _MatrixPart) -> None:
        view, at = part.piece.view, part.at
        for target, found in zip(
            (whole.q_NK, whole.scale_NG), self._read(part, whole.bits), strict=True
        ):
            seen = target if view is None else target.view(*view[:-1], -1)
            assert len(at) < seen.dim(), "a piece is of whole rows"
            seen[at].copy_(found)

    def _exact(self, piece: Piece, expert: int | None, bits: Bits) -> tuple[Tensor, Tensor] | None:
        """Return the stored integers and scales of a piece, without unpacking them.

        Returns None if the piece does not take whole rows, or has no groups of at most `bits` bits.
        """
        if not _takes_rows(piece):
            return None
        key = (piece.stored, None)
        groups = self._kept(key, expert, lambda: self._source.groups(piece.stored))
        if groups is None or groups.bits > bits:
            return None
        self.exact.add(piece.stored)
        return _taken(groups, piece, expert)

    def _requantised(
        self, piece: Piece, expert: int | None, bits: Bits
    ) -> tuple[Tensor, Tensor] | None:
        """Return a piece of quantised blocks that the source quantises again, or None."""
        if not _takes_rows(piece):
            return None
        key = (piece.stored, bits)
        groups = self._kept(key, expert, lambda: self._source.requantised(piece.stored, bits))
        if groups is None:
            return None
        self.requantised[piece.stored] = bits
        return _taken(groups, piece, expert)

    def _kept(
        self,
        key: tuple[str, Bits | None],
        expert: int | None,
        read: Callable[[], Groups | None],
    ) -> Groups | None:
        """Read groups; those of a stack of experts are kept until `release`."""
        if key in self._groups:
            return self._groups[key]
        groups = read()
        if expert is not None:
            self._groups[key] = groups
        return groups

    def _quantised(self, piece: Piece, expert: int | None, bits: Bits) -> tuple[Tensor, Tensor]:
        part = self._part(piece, expert)
        columns = part.shape[-1]
        part = F.pad(part, (0, -columns % GROUP)) if columns % GROUP else part
        name = f"{self._source.path}: {piece.stored}"
        groups = quantise(
            part.flatten(0, -2), bits, name if expert is None else f"{name}[{expert}]"
        )
        if self._source.tensors[piece.stored].dtype not in _PLAIN:
            self.requantised[piece.stored] = bits
        return groups.q_NK.view(part.shape), groups.scale_NG.view(*part.shape[:-1], -1)

    def _part(self, piece: Piece, expert: int | None) -> Tensor:
        stored = self._tensors.get(piece.stored)
        if stored is None:
            stored = self._source.read(piece.stored)
        if expert is not None:
            self._tensors[piece.stored] = stored
        part = stored if piece.stored_view is None else stored.view(piece.stored_view)
        part = part[piece.of].mT if piece.transposed else part[piece.of]
        return part if expert is None else part[expert]


def _takes_rows(piece: Piece) -> bool:
    """Whether a piece takes whole rows of its stored tensor."""
    return not piece.transposed and len(piece.of) < len(piece.stored_view or piece.shape)


def _taken(groups: Groups, piece: Piece, expert: int | None) -> tuple[Tensor, Tensor]:
    """The integers and the scales of a piece of a stored tensor."""
    view = (*(piece.stored_view or piece.shape)[:-1], -1)
    q, scale = (one.view(view)[piece.of] for one in (groups.q_NK, groups.scale_NG))
    return (q, scale) if expert is None else (q[expert], scale[expert])
