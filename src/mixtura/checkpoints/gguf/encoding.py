"""Tensors of a GGUF file to be written: put together from Hugging Face's, and encoded.

N rows, K columns of one matrix.
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
    """A tensor to be written, and the pieces of Hugging Face's that fill it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[Piece, ...]

    def encoded(self, source: Source) -> Iterator[NDArray[np.uint8]]:
        """Its bytes in order, one matrix at a time; of a stack one expert at a time."""
        for pieces in self._parts():
            exact = self._groups(source, pieces)
            if exact is not None:
                yield packed(exact)
                continue
            values = filled(pieces, lambda piece: source.read(piece.ours))
            # Views of the stack, so that only one expert's numbers are encoded at a time.
            matrices = values.flatten(0, -3) if values.dim() > 2 else [values]
            for matrix_NK in matrices:
                yield self._encoded(matrix_NK)

    def _parts(self) -> Iterable[list[Piece]]:
        """Pieces by the slice of the first dim that they fill, where each fills one slice."""
        slices: dict[int, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            found = narrowed(piece)
            if found is None:
                return [list(self.pieces)]
            slices[found[0]].append(found[1])
        return [slices[number] for number in sorted(slices)]

    def _groups(self, source: Source, pieces: list[Piece]) -> Groups | None:
        """The source's own groups; None where it lacks some, or has more bits than `kind`."""
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
    """A vector that follows from the config, in fp32."""

    name: str
    values: NDArray[np.float32]

    kind = Kind.F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def encoded(self, source: Source) -> Iterator[NDArray[np.uint8]]:
        yield self.values.view(np.uint8)
