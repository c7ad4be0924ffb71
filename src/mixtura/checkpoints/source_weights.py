"""Reads the weights of a Hugging Face folder or a GGUF file, for conversion to other formats."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mixtura.checkpoints.loaded_model import decoder_config, load_source
from mixtura.checkpoints.packed.group_reader import GroupReader
from mixtura.checkpoints.piece_coverage import check_filled
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.weight_check import check_of
from mixtura.checkpoints.weights import DecoderWeights, Weights
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Groups
from mixtura.shapes.families import Piece, family_of
from mixtura.shapes.storage.numbers import Bits


class SourceWeights(Weights):
    """The weights of a checkpoint; each tensor is assembled from its pieces when it is read."""

    def __init__(self, source: Source, pieces: Sequence[Piece] | None = None) -> None:
        """Each piece pairs a part of a stored tensor with the part of a decoder's tensor it fills.

        By default all pieces of the checkpoint's family are used. Raises ConfigError, naming the
        tensor, if the pieces do not fill a tensor of the decoder.
        """
        self.family = family_of(source.config)
        self.source, self.path = source, source.path
        self.config = decoder_config(self.family, source)
        self._pieces = list(self.family.pieces(self.config) if pieces is None else pieces)
        check_filled(self.path, self._pieces, self.like)
        self._reader = GroupReader(source, self._pieces)

    @cached_property
    def check(self) -> Check:  # pyright: ignore[reportIncompatibleMethodOverride]
        return check_of(self.source, self._pieces, self.config)

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        whole = self._reader.plain(name, self.like[name])
        return whole if expert is None else whole[expert]

    def dtype_of(self, name: str) -> torch.dtype:
        return self._reader.plain_dtype(name, self.like[name])

    def stored_as(self, name: str) -> str:
        return self.source.tensors[self._reader.pieces_of(name)[0].stored].dtype

    def stored_bits(self, names: Iterable[str]) -> Bits:
        return self._reader.stored_bits(names)

    def matrix(self, name: str, bits: Bits, expert: int | None = None) -> Groups:
        rows, columns = self.like[name].shape[-2:]
        return self._reader.matrix(name, (rows, columns), bits, expert)

    def release(self) -> None:
        self._reader.release()

    def remarks(self) -> Iterator[str]:
        """Yield lines on how many stored tensors were copied exactly, and how many requantised."""
        for kind, count in self._kinds(self._reader.exact).items():
            yield f"{tensors_in_words(count)} of {kind} carried over exactly"
        for bits in (4, 8):
            again = (name for name, own in self._reader.requantised.items() if own == bits)
            for kind, count in self._kinds(again).items():
                words = tensors_in_words(count)
                yield f"{words} of {kind} unpacked and quantised again in {bits} bits"

    def in_memory(self) -> Weights:
        """Load all weights. Except for router gates, they get one dtype.

        Raises ConfigError or CheckpointError, as `load_source` does.
        """
        loaded = load_source(self.source, wait=False)
        return DecoderWeights(loaded.decoder, self.path, loaded.check)

    def _kinds(self, stored: Iterable[str]) -> Counter[str]:
        return Counter(self.source.tensors[name].dtype for name in stored)


def tensors_in_words(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"
