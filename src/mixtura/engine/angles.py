"""Rotary angles of every position, computed once.

R rows, L positions, C head dim, P = C/2 pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.models.rotary import Rotary, angles
from mixtura.shapes import DecoderShape
from mixtura.shapes.rope import LongRopeScaling

Base = float | None


@dataclass(frozen=True, slots=True)
class AngleTables:
    """For each rotary base of the layers, rows of angles: first of positions 0..L-1.

    Under LongRoPE the same positions follow once more, as they turn in sequences beyond the
    original context.
    """

    by_base: dict[Base, Rotary]

    @classmethod
    def of(
        cls, shape: DecoderShape, positions: int, device: torch.device | None = None
    ) -> "AngleTables":
        bases = {shape.attention.local_base_of(layer) for layer in range(shape.layers)}
        tables = {base: _table(shape, base, positions) for base in bases}
        if device is not None:
            # Computed on the CPU, so that they are the same numbers on every device.
            tables = {
                base: Rotary(table.cos_SC.to(device), table.sin_SP.to(device))
                for base, table in tables.items()
            }
        return cls(tables)

    def at(self, angle_R: Tensor, dtype: torch.dtype) -> dict[Base, Rotary]:
        """The angles of these rows, rounded as a decoder of that dtype rounds them."""
        return {
            base: Rotary(table.cos_SC[angle_R], table.sin_SP[angle_R]).to(dtype)
            for base, table in self.by_base.items()
        }


def _table(shape: DecoderShape, base: Base, positions: int) -> Rotary:
    heads = shape.attention
    position_L = torch.arange(positions)
    scaling = heads.rope_scaling if base is None else None
    base = heads.rope_base if base is None else base
    near = angles(position_L, heads.rope_dim, base, scaling)
    if not isinstance(heads.rope_scaling, LongRopeScaling):
        return near
    far = angles(position_L, heads.rope_dim, base, scaling, beyond=True)
    return Rotary(torch.cat([near.cos_SC, far.cos_SC]), torch.cat([near.sin_SP, far.sin_SP]))
