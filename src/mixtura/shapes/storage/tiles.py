"""The bytes of matrices and experts that are stored in tiles.

docs/packed.md has pictures of tiles, blocks and units.

N output channels and K inputs of a matrix.
"""

from mixtura.shapes.storage.numbers import GROUP, SCALE_BYTES, Bits, group_bytes, up

UNIT, BLOCK, TILE = 32, 64, 16
"""the output channels of a unit, the inputs of a block, and the output channels of a tile"""
ALIGNMENT, PAGE = 64, 4096
"""the offset of a tensor is a multiple of ALIGNMENT, the offset of an expert a multiple of PAGE"""
BLOCK_GROUPS = UNIT * BLOCK // GROUP
BLOCK_SCALE_BYTES = BLOCK_GROUPS * SCALE_BYTES
"""the bytes of the scales, which come first in a block"""


def block_bytes(bits: Bits) -> int:
    """Bytes of a block: 32 output channels with 64 inputs each."""
    return BLOCK_GROUPS * group_bytes(bits)


def tiled_bytes(n: int, k: int, bits: Bits) -> int:
    """Bytes of a matrix [N, K] in tiles, padded to whole units and blocks."""
    return up(n, UNIT) // UNIT * (up(k, BLOCK) // BLOCK) * block_bytes(bits)


def rows_in(expert_width: int, gated: bool) -> int:
    """The number of rows of an expert's w_in in tiles, padding included."""
    return 2 * up(expert_width, TILE) if gated else up(expert_width, UNIT)


def w_out_start(width: int, expert_width: int, bits: Bits, gated: bool) -> int:
    """The offset of w_out's tiles from the start of the expert."""
    return up(tiled_bytes(rows_in(expert_width, gated), width, bits), ALIGNMENT)


def expert_bytes(width: int, expert_width: int, bits: Bits, gated: bool) -> int:
    """Bytes from the start of one expert to the start of the next expert."""
    start = w_out_start(width, expert_width, bits, gated)
    return up(start + tiled_bytes(width, expert_width, bits), PAGE)
