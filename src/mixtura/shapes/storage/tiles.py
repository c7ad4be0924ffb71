"""The bytes of matrices and experts as tiles; docs/packed.md has pictures of them.

N output channels, K inputs, D width, F expert width.
"""

from mixtura.shapes.storage.numbers import GROUP, SCALE_BYTES, Bits, group_bytes, up

UNIT, BLOCK, TILE = 32, 64, 16
"""channels of a unit, inputs of a block, and channels of a tile"""
ALIGNMENT, PAGE = 64, 4096
"""a tensor's offset is a multiple of the first, an expert's of the second"""
BLOCK_GROUPS = UNIT * BLOCK // GROUP
BLOCK_SCALE_BYTES = BLOCK_GROUPS * SCALE_BYTES
"""the scales at the beginning of a block"""


def block_bytes(bits: Bits) -> int:
    """Of 32 channels of 64 inputs."""
    return BLOCK_GROUPS * group_bytes(bits)


def tiled_bytes(n: int, k: int, bits: Bits) -> int:
    """Of [N, K] as tiles, padded to whole units and blocks."""
    return up(n, UNIT) // UNIT * (up(k, BLOCK) // BLOCK) * block_bytes(bits)


def rows_in(expert_width: int, gated: bool) -> int:
    """Rows of w_in as tiles, with padding."""
    return 2 * up(expert_width, TILE) if gated else up(expert_width, UNIT)


def w_out_start(width: int, expert_width: int, bits: Bits, gated: bool) -> int:
    """Where the tiles of w_out begin in an expert's bytes."""
    return up(tiled_bytes(rows_in(expert_width, gated), width, bits), ALIGNMENT)


def expert_bytes(width: int, expert_width: int, bits: Bits, gated: bool) -> int:
    """Bytes from one expert to the next."""
    start = w_out_start(width, expert_width, bits, gated)
    return up(start + tiled_bytes(width, expert_width, bits), PAGE)
