"""Assembles the tensors of a GGUF file from Hugging Face's tensors, and encodes them as bytes.

In a `Piece` of this module `stored` is GGUF's tensor, and `ours` is Hugging Face's tensor. N rows
and K columns of a matrix.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixtura.checkpoints.filled_tensors import filled, filled_groups
from mixtura.checkpoints.gguf.blocks import BITS, packed
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.checkpoints.gguf.links import narrowed
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError
from mixtura.kernels.packed.groups import Groups, quantise
from mixtura.shapes.families import Piece

DTYPES: Mapping[Kind, torch.dtype] = {
    Kind.F32: torch.float32,
    Kind.F16: torch.float16,
    Kind.BF16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class OutTensor:
    """A GGUF tensor to be written, and the pieces of Hugging Face's tensors that fill it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[Piece, ...]

    def encoded(self, source: Source) -> Iterator[NDArray[np.uint8]]:
        """Yield the tensor's bytes in order; a stack of experts is encoded one expert at a time."""
        for pieces in self._parts():
            exact = self._groups(source, pieces)
            if exact is not None:
                yield packed(exact)
                continue
            values = filled(pieces, lambda piece: source.read(piece.ours))
            # The matrices are views of `values`, so only one matrix's encoded bytes are in memory.
            matrices = values.flatten(0, -3) if values.dim() > 2 else [values]
            for matrix_NK in matrices:
                yield self._encoded(matrix_NK)

    def _parts(self) -> Iterable[list[Piece]]:
        """Divide the pieces into lists: one for each index of the first dim, such as each expert.

        If a piece fills more than one index, all pieces form one list.
        """
        slices: dict[int, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            found = narrowed(piece)
            if found is None:
                return [list(self.pieces)]
            slices[found[0]].append(found[1])
        return [slices[number] for number in sorted(slices)]

    def _groups(self, source: Source, pieces: list[Piece]) -> Groups | None:
        """Read the groups that the source stores, without rounding.

        Returns None if the source does not store all pieces in groups, or if the groups have more
        bits than `kind`.
        """
        if self.kind not in BITS:
            return None
        shapes = {piece.ours: source.tensors[piece.ours].shape for piece in pieces}
        found = filled_groups(
            pieces,
            lambda piece: source.groups(piece.ours),
            lambda piece: shapes[piece.ours][:-1],
        )
        if found is None or found.bits > BITS[self.kind]:
            return None
        return Groups(found.q_NK, found.scale_NG, BITS[self.kind])

    def _encoded(self, values: Tensor) -> NDArray[np.uint8]:
        if self.kind in BITS:
            return packed(quantise(values, BITS[self.kind], self.name))
        cast = values.to(DTYPES[self.kind])
        if self.kind == Kind.F16 and not bool(cast.isfinite().all()):
            raise ConfigError(
                f"{self.name}: holds {float(values.abs().max()):g}, beyond what f16 reaches; write "
                "it as bf16"
            )
        return cast.contiguous().flatten().view(torch.uint8).numpy()


@dataclass(frozen=True, slots=True)
class Factors:
    """An fp32 vector that is computed from the config, such as RoPE's frequency factors."""

    name: str
    values: NDArray[np.float32]

    kind = Kind.F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def encoded(self, source: Source) -> Iterator[NDArray[np.uint8]]:
        yield self.values.view(np.uint8)
