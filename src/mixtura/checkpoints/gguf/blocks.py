"""Converts GGUF's blocks Q4_0 and Q8_0 to Mixtura's groups, and back.

A block and a group both hold 32 weights of a row as integers with one fp16 scale. N rows, K
columns, G = K/32 blocks of a row, B bytes of a block, X bytes of a row. In `q_NGK` and `nibble_NGK`
K is the 32 columns of one block. In `scale_NGB` and `quants_NGB` B is the bytes of a part of a
block.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind
from mixtura.shapes.storage import GROUP, Bits

if TYPE_CHECKING:
    from mixtura.kernels.packed.groups import Groups

BITS: Mapping[Kind, Bits] = {
    Kind.Q4_0: 4,
    Kind.Q8_0: 8,
}
"""the bits of a weight, for each format whose blocks can be converted to groups exactly"""
_SCALE = 2
# A nibble, half of a byte, holds q + 8. The lower nibbles of a block hold its first 16 weights, the
# upper nibbles its last 16.
_OFFSET, _HALF = 8, GROUP // 2


def groups_bits(kind: Kind) -> Bits:
    """The bits of groups, 4 or 8, that keep the precision of a GGUF format.

    Formats of 4 bits or more, except Q4_0, need 8 bits, because their levels are not the 16 levels
    of a 4-bit group. The perplexity of SmolLM2 in Q4_1 rises by 23% if it is packed in 4 bits, and
    by 0.2% in 8 bits. Formats of fewer than 4 bits are coarser than 4-bit groups, and get 4 bits.
    """
    if kind in BITS:
        return BITS[kind]
    weights, size = BLOCKS[kind]
    return 8 if 8 * size >= 4 * weights else 4


def unpacked(rows_NX: NDArray[np.uint8], kind: Kind) -> "Groups | None":
    """Convert rows of blocks to groups; None if a Q8_0 number is -128, which groups cannot hold."""
    import torch

    from mixtura.kernels.packed.groups import Groups

    bits = BITS[kind]
    rows, size = rows_NX.shape
    block_bytes = BLOCKS[kind][1]
    block_NGB = rows_NX.reshape(rows, size // block_bytes, block_bytes)
    scale_NG = np.ascontiguousarray(block_NGB[..., :_SCALE]).view(np.float16)[..., 0]
    quants_NGB = block_NGB[..., _SCALE:]
    if bits == 4:
        q_NGK = np.concatenate([quants_NGB & 15, quants_NGB >> 4], -1).astype(np.int8) - _OFFSET
    else:
        q_NGK = np.ascontiguousarray(quants_NGB).view(np.int8)
        if (q_NGK == -128).any():
            return None
    q_NK = torch.from_numpy(q_NGK.reshape(rows, size // block_bytes * GROUP))
    return Groups(q_NK, torch.from_numpy(scale_NG), bits)


def packed(groups: "Groups") -> NDArray[np.uint8]:
    """Convert groups to the bytes of blocks, (N, X); the scale comes first in each block."""
    q_NGK = groups.q_NK.numpy().reshape(*groups.scale_NG.shape, GROUP)
    scale_NGB = groups.scale_NG.contiguous().numpy()[..., None].view(np.uint8)
    if groups.bits == 4:
        nibble_NGK = (q_NGK + _OFFSET).astype(np.uint8)
        quants_NGB = nibble_NGK[..., :_HALF] | np.left_shift(nibble_NGK[..., _HALF:], np.uint8(4))
    else:
        quants_NGB = q_NGK.view(np.uint8)
    whole = np.concatenate([scale_NGB, quants_NGB], -1)
    return whole.reshape(len(whole), whole.shape[1] * whole.shape[2])
