"""Multiplies four-bit floats (e2m1) by the scales of their groups.

N rows, K columns, G groups of a row, H = K/2 bytes of a row.
"""

import torch
from torch import Tensor

# The values of the lower three bits of a number; the highest bit is the sign.
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_SIZES, *(-size for size in _SIZES)])
# About so many weights are computed at a time; in fp32 they take 4 MiB.
_AT_ONCE = 1 << 20


def scaled(byte_NH: Tensor, scale_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute weight_NK: each number times its fp32 scale, rounded to `dtype`."""
    rows, size = byte_NH.shape
    pair_of_byte = torch.stack([_VALUES.repeat(16), _VALUES.repeat_interleave(16)], 1)
    weight_NK = torch.empty(rows, 2 * size, dtype=dtype)
    of_group, at_once = (scale_NG.shape[1], -1), max(1, _AT_ONCE // (2 * size))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        number = pair_of_byte[byte_NH[part].int().flatten()].view(-1, *weight_NK.shape[1:])
        torch.mul(
            number.unflatten(1, of_group),
            scale_NG[part, :, None],
            out=weight_NK[part].unflatten(1, of_group),
        )
    return weight_NK
