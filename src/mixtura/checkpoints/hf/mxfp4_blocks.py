"""Unpacks MXFP4 weights to bf16. 32 four-bit floats share one scale, a power of two.

E experts, R rows of a matrix, G groups in a row, B = 16 bytes of a group, C = 32G columns,
N = 16RG bytes of an expert.
"""

import torch
from torch import Tensor

GROUP = 32
# The values of the lower three bits of a four-bit float (e2m1); the highest bit is the sign.
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_SIZES, *(-size for size in _SIZES)], dtype=torch.bfloat16)


def unpack(block_ERGB: Tensor, scale_ERG: Tensor) -> Tensor:
    """Return weight_ERC in bf16. A byte holds two values, the first in its lower four bits."""
    # For each byte this table holds both values together, as the 32 bits of two bf16 numbers.
    pair_of_byte = torch.stack([_VALUES.repeat(16), _VALUES.repeat_interleave(16)], 1)
    bits_of_byte = pair_of_byte.view(torch.int32).flatten()
    experts, rows, groups, _ = block_ERGB.shape
    weight_ERC = torch.empty(experts, rows, GROUP * groups, dtype=torch.bfloat16)
    # One expert at a time, because the int32 indices take four times the memory of the bytes.
    for expert in range(experts):
        byte_N, own_RC = block_ERGB[expert].flatten().int(), weight_ERC[expert]
        torch.index_select(bits_of_byte, 0, byte_N, out=own_RC.view(torch.int32).view(-1))
        scale_RG1 = scale_ERG[expert].view(torch.float8_e8m0fnu).to(torch.bfloat16)[..., None]
        own_RC.view(rows, groups, GROUP).mul_(scale_RG1)
    return weight_ERC
