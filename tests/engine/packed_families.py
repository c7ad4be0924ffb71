"""Tiny decoders, packed."""

from pathlib import Path

import torch
from torch import Tensor

from mixtura.checkpoints.packed.packing import Precision, write_packed
from mixtura.checkpoints.packed.quantised_pieces import GroupReader
from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.kernels.packed.groups import Bits
from mixtura.models import Decoder
from mixtura.models.packed_decoder import packed_decoder
from mixtura.packed import PackedFile
from mixtura.shapes.families import Piece


class Held(Source):
    """A decoder's own tensors."""

    def __init__(self, decoder: Decoder) -> None:
        self.path, self.config = Path("held"), {}
        self._held = decoder.state_dict()
        self.tensors = {
            name: StoredTensor(name, tuple(tensor.shape), "F32", self.path, tensor.nbytes)
            for name, tensor in self._held.items()
        }

    def read(self, name: str) -> Tensor:
        return self._held[name]

    def dtype_of(self, name: str) -> torch.dtype:
        return self._held[name].dtype


def packed(decoder: Decoder, folder: Path, bits: Bits = 8) -> Decoder:
    source, path = Held(decoder), folder / "model.mixtura"
    pieces = [Piece(name, one.shape, name) for name, one in source.tensors.items()]
    reader = GroupReader(source, pieces)
    write_packed(path, reader, source, decoder.config, "mixtura", Precision(bits, bits))
    return packed_decoder(PackedFile(path))
