"""Weights that are stored as integers with scales, as GPTQ, AWQ and compressed-tensors store them.

N rows and K columns of a weight, G groups of a row, R rows of a packed matrix, W words of its row.
A word is an int32 that holds 32 / bits numbers, the first in its lowest bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.kernels.packed.groups import Groups
from mixtura.shapes.storage.numbers import GROUP

# About so many weights are computed at a time; in fp32 they take 4 MiB.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Integers:
    """A weight: w[n, k] = q_NK[n, k] * scale_NG[n, g], with g the group of column k."""

    q_NK: Tensor
    """int8 or int16; zero points are already subtracted"""
    scale_NG: Tensor
    group_K: Tensor | None = None
    """the group of each column; None if each group is K/G columns that follow one another"""

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Compute weight_NK: each product is computed in fp32 and rounded to `dtype`."""
        rows, columns = self.q_NK.shape
        weight_NK = torch.empty(rows, columns, dtype=dtype)
        at_once = max(1, _AT_ONCE // columns)
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            scale_NG = self.scale_NG[part].float()
            q_NK, out_NK = self.q_NK[part].float(), weight_NK[part]
            if self.group_K is None:
                of_group = (scale_NG.shape[1], -1)
                torch.mul(
                    q_NK.unflatten(1, of_group),
                    scale_NG[:, :, None],
                    out=out_NK.unflatten(1, of_group),
                )
            else:
                torch.mul(q_NK, scale_NG[:, self.group_K], out=out_NK)
        return weight_NK

    def groups(self) -> Groups | None:
        """Return the exact weight as groups of 32 with fp16 scales; None if they cannot hold it."""
        (_, columns), groups = self.q_NK.shape, self.scale_NG.shape[1]
        if self.group_K is not None or columns // groups % GROUP:
            return None
        half_NG = self.scale_NG.half()
        exact = half_NG.isfinite().all() and half_NG.float().equal(self.scale_NG.float())
        low, high = (int(one) for one in self.q_NK.aminmax())
        if not exact or low < -127 or high > 127:
            return None
        return Groups(
            self.q_NK.to(torch.int8),
            half_NG.repeat_interleave(columns // groups // GROUP, 1),
            4 if low >= -8 and high <= 7 else 8,
        )


def unpacked(word_RW: Tensor, bits: int) -> Tensor:
    """Unpack each row to uint8 numbers in 0..2^bits - 1; `bits` is 4 or 8."""
    # Flattened, because the view as bytes needs stride 1 in the last dim. `contiguous` does not
    # ensure this for a matrix of one column, whose last stride torch ignores.
    byte = word_RW.flatten().view(torch.uint8).view(word_RW.shape[0], -1)
    if bits == 8:
        return byte
    return torch.stack((byte & 15, byte >> 4), -1).flatten(-2)


def centred(
    number_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor, group_K: Tensor | None = None
) -> Integers:
    """Return the weight (number - zero) * scale; numbers and zero points are int8 or uint8."""
    if group_K is not None:
        q_NK = number_NK.to(torch.int16) - zero_NG.to(torch.int16)[:, group_K]
        return Integers(q_NK, scale_NG, group_K)
    wide = number_NK.to(torch.int16).unflatten(1, (zero_NG.shape[1], -1))
    return Integers((wide - zero_NG.to(torch.int16)[:, :, None]).flatten(1), scale_NG)
