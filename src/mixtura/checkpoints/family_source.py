"""Presents a decoder's weights as the tensors of a Hugging Face checkpoint of a given family.

A `Piece` pairs a part of a checkpoint's tensor ("stored") with the part of a tensor of the decoder
("ours") that holds the same numbers.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple, Self

from torch import Tensor

from mixtura.checkpoints.filled_tensors import filled, filled_groups
from mixtura.checkpoints.hf.model_config import hf_config
from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.checkpoints.weights import DecoderWeights, Weights
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Groups
from mixtura.models import Decoder
from mixtura.shapes.families import Family, Piece
from mixtura.shapes.storage.numbers import GROUP, Bits, group_bytes

_BITS: Mapping[str, Bits] = {"Q4_0": 4, "Q8_0": 8}


class _Own(NamedTuple):
    """A tensor of Mixtura's decoder, or the part of it that belongs to one expert."""

    name: str
    expert: int | None


class FamilySource(Source):
    """A Source whose tensors are assembled from a decoder's weights when they are read.

    For a tensor of one expert, only this expert's weights are read. Raises ConfigError if the
    family's config cannot express what the decoder computes.
    """

    def __init__(self, weights: Weights, family: Family) -> None:
        self.path, self.config = weights.path, hf_config(weights.config, family)
        self.weights = weights
        self._own: dict[str, _Own] = {}
        self._pieces: dict[str, list[Piece]] = {}
        for piece in family.pieces(weights.config):
            self._pieces.setdefault(piece.stored, []).append(self._narrowed(piece))
        self.tensors = {name: self._described(name) for name in self._pieces}

    @classmethod
    def of(cls, decoder: Decoder, family: Family, path: Path) -> Self:
        """Present the weights of a decoder in memory; error messages name `path`."""
        return cls(DecoderWeights(decoder, path), family)

    def own_check(self, roles: Mapping[str, str]) -> Check:
        return self.weights.check

    def read(self, name: str) -> Tensor:
        return filled(self._pieces[name], lambda piece: self.weights.tensor(*self._own[piece.ours]))

    def groups(self, name: str) -> Groups | None:
        pieces = self._pieces[name]
        return filled_groups(
            pieces,
            lambda piece: self.weights.groups(*self._own[piece.ours]),
            lambda piece: self._shape(self._own[piece.ours])[:-1],
        )

    def _narrowed(self, piece: Piece) -> Piece:
        """Return a piece of a single expert as a part of that expert's own tensor.

        Any other piece is returned unchanged.
        """
        own = _Own(piece.ours, None)
        if piece.view is None and piece.at and isinstance(piece.at[0], int):
            own = _Own(piece.ours, piece.at[0])
            piece = replace(piece, ours=f"{piece.ours}[{own.expert}]", at=piece.at[1:])
        self._own[piece.ours] = own
        return piece

    def _shape(self, own: _Own) -> tuple[int, ...]:
        shape = tuple(self.weights.like[own.name].shape)
        return shape if own.expert is None else shape[1:]

    def _described(self, name: str) -> StoredTensor:
        piece = self._pieces[name][0]
        own = self._own[piece.ours].name
        numbers, stored_as = prod(piece.shape), self.weights.stored_as(own)
        if stored_as in _BITS:
            size = numbers * group_bytes(_BITS[stored_as]) // GROUP
        else:
            size = numbers * self.weights.dtype_of(own).itemsize
        return StoredTensor(name, piece.shape, stored_as, self.path, size)
