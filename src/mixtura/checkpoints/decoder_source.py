"""A decoder of ours as a Source: what a checkpoint of one of its families would hold."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

from torch import Tensor

from mixtura.checkpoints.filling import filled
from mixtura.checkpoints.hf.saving import hf_config
from mixtura.checkpoints.source import Source, StoredTensor, spelt
from mixtura.models import Decoder
from mixtura.shapes.families import Family, Piece


class DecoderSource(Source):
    """Each tensor is put together when it is asked for.

    Raises ConfigError where the family cannot say what this decoder computes.
    """

    def __init__(self, decoder: Decoder, family: Family, path: Path) -> None:
        self.path, self.config = path, hf_config(decoder.config, family)
        self._ours: Mapping[str, Tensor] = {
            **dict(decoder.named_parameters()),
            **dict(decoder.named_buffers()),
        }
        self._pieces: dict[str, list[Piece]] = {}
        for piece in family.pieces(decoder.config):
            self._pieces.setdefault(piece.stored, []).append(piece)
        self.tensors = {name: self._stored(name) for name in self._pieces}

    def read(self, name: str) -> Tensor:
        return filled(self._pieces[name], lambda piece: self._ours[piece.ours].detach())

    def _stored(self, name: str) -> StoredTensor:
        piece = self._pieces[name][0]
        dtype = self._ours[piece.ours].dtype
        size = prod(piece.shape) * dtype.itemsize
        return StoredTensor(name, piece.shape, spelt(dtype), self.path, size)
