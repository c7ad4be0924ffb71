"""Tiny decoders, packed."""

from pathlib import Path

from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.weights import DecoderWeights
from mixtura.models import Decoder
from mixtura.models.packed_decoder import packed_decoder
from mixtura.packed import PackedFile
from mixtura.shapes.storage.numbers import Bits


def packed(decoder: Decoder, folder: Path, bits: Bits = 8) -> Decoder:
    path = folder / "model.mixtura"
    write_packed(path, DecoderWeights(decoder, folder), "mixtura", Precision(bits, bits))
    return packed_decoder(PackedFile(path))
