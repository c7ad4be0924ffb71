"""Reads the matrices of Mixtura's decoder as quantised groups, from a checkpoint of any format.

A group is 32 weights of a row that share a scale. A stored tensor has the name and the layout of
the checkpoint. A `Piece` pairs a part of a stored tensor with a part of a tensor of the decoder. N
rows and K columns of a matrix, G = K/32 groups of a row.
"""

from collections import defaultdict
from collections.abc import Iterable

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
        self._groups: dict[str, Groups | None] = {}
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
        whole = Groups(
            torch.empty(rows, columns, dtype=torch.int8),
            torch.empty(rows, columns // GROUP, dtype=torch.float16),
            bits,
        )
        for piece in self._pieces[name]:
            first = piece.at[0] if piece.at else slice(None)
            if expert is None:
                self._fill(whole, piece, piece.at, None, bits)
            elif first == slice(None):
                assert piece.view is None, "a stack of experts has no view"
                self._fill(whole, piece, piece.at[1:], expert, bits)
            elif first == expert:
                self._fill(whole, piece, piece.at[1:], None, bits)
        return whole

    def release(self) -> None:
        """Free the stored tensors that were kept because they hold many experts."""
        self._tensors.clear()
        self._groups.clear()

    def _fill(self, whole: Groups, piece: Piece, at: Part, expert: int | None, bits: Bits) -> None:
        found = self._exact(piece, expert, bits) or self._quantised(piece, expert, bits)
        for target, part in zip((whole.q_NK, whole.scale_NG), found, strict=True):
            seen = target if piece.view is None else target.view(*piece.view[:-1], -1)
            assert len(at) < seen.dim(), "a piece is of whole rows"
            seen[at].copy_(part)

    def _exact(self, piece: Piece, expert: int | None, bits: Bits) -> tuple[Tensor, Tensor] | None:
        """Return the stored integers and scales of a piece, without unpacking them.

        Returns None if the piece does not take whole rows, or has no groups of at most `bits` bits.
        """
        stored_view = piece.stored_view or piece.shape
        if piece.transposed or len(piece.of) >= len(stored_view):
            return None
        known = piece.stored in self._groups
        groups = self._groups[piece.stored] if known else self._source.groups(piece.stored)
        if expert is not None:
            self._groups[piece.stored] = groups
        if groups is None or groups.bits > bits:
            return None
        self.exact.add(piece.stored)
        q, scale = (
            stored.view(*stored_view[:-1], -1)[piece.of]
            for stored in (groups.q_NK, groups.scale_NG)
        )
        return (q, scale) if expert is None else (q[expert], scale[expert])

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
