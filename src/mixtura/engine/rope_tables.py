"""Cosines and sines of the RoPE angles of all positions, computed once for a decoder.

R rows of a step, L positions, S table rows, C rotated dims of a head, P = C/2 rotated pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.models.rotary import Rotary, angles, local_rotary
from mixtura.shapes import DecoderShape
from mixtura.shapes.rope import LongRopeScaling

Base = float | None
"""A layer's own RoPE base; None for the base of the whole model."""


@dataclass(frozen=True, slots=True)
class RopeTables:
    """For each RoPE base that a layer uses, a table whose row p has the angles of position p.

    Under LongRoPE a table has 2 L rows. Row L + p then has the angles of position p in a sequence
    that is longer than the original context.
    """

    by_base: dict[Base, Rotary]

    @classmethod
    def of(
        cls, shape: DecoderShape, positions: int, device: torch.device | None = None
    ) -> "RopeTables":
        bases = {shape.attention.local_base_of(layer) for layer in range(shape.layers)}
        tables = {base: _table(shape, base, positions) for base in bases}
        if device is not None:
            # The CPU computes the tables, so that every device has the same numbers.
            tables = {
                base: Rotary(table.cos_SC.to(device), table.sin_SP.to(device))
                for base, table in tables.items()
            }
        return cls(tables)

    def at(self, angle_R: Tensor, dtype: torch.dtype) -> dict[Base, Rotary]:
        """Rows `angle_R` of every table, in `dtype`."""
        return {
            base: Rotary(table.cos_SC[angle_R], table.sin_SP[angle_R]).to(dtype)
            for base, table in self.by_base.items()
        }


def _table(shape: DecoderShape, base: Base, positions: int) -> Rotary:
    heads, scaling = shape.attention, shape.attention.rope_scaling
    position_L, dims = torch.arange(positions), heads.rope_dim
    if base is not None:
        near = far = local_rotary(position_L, dims, base)
    else:
        near = angles(position_L, dims, heads.rope_base, scaling)
        far = angles(position_L, dims, heads.rope_base, scaling, beyond=True)
    if not isinstance(scaling, LongRopeScaling):
        return near
    return Rotary(torch.cat([near.cos_SC, far.cos_SC]), torch.cat([near.sin_SP, far.sin_SP]))
