"""Blocks of 32 weights as GGUF stores them, Q4_0 and Q8_0, to and from groups of ours.

N rows, K columns, G = K/32 blocks of a row, B bytes of a block.
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
"""the kinds whose blocks are groups of ours"""
_SCALE = 2
# A nibble holds q + 8; the lower nibbles of a block are its first half, the upper its second.
_OFFSET, _HALF = 8, GROUP // 2


def groups_bits(kind: Kind) -> Bits:
    """The bits of groups that keep the precision of a kind.

    A kind of 4 bits or more has its own grid, which the 16 levels of 4 bits cannot follow: packed
    in 4 bits SmolLM2's Q4_1 has 23% more perplexity, in 8 bits 0.2%. A kind of fewer than 4 bits is
    coarser than groups of 4 bits.
    """
    if kind in BITS:
        return BITS[kind]
    weights, size = BLOCKS[kind]
    return 8 if 8 * size >= 4 * weights else 4


def unpacked(rows_NX: NDArray[np.uint8], kind: Kind) -> "Groups | None":
    """Rows of blocks as groups; None where a number lies outside what groups hold."""
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
    """Groups as blocks, (N, G B): in each block the scale first."""
    q_NGK = groups.q_NK.numpy().reshape(*groups.scale_NG.shape, GROUP)
    scale_NGB = groups.scale_NG.contiguous().numpy()[..., None].view(np.uint8)
    if groups.bits == 4:
        nibble_NGK = (q_NGK + _OFFSET).astype(np.uint8)
        quants_NGB = nibble_NGK[..., :_HALF] | np.left_shift(nibble_NGK[..., _HALF:], np.uint8(4))
    else:
        quants_NGB = q_NGK.view(np.uint8)
    whole = np.concatenate([scale_NGB, quants_NGB], -1)
    return whole.reshape(len(whole), whole.shape[1] * whole.shape[2])
