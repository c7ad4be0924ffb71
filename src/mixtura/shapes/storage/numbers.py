"""The bytes of plain numbers, and of weights in groups that share a scale."""

from collections.abc import Mapping
from typing import Literal

Bits = Literal[4, 8]
"""of a packed weight"""
GROUP = 32
"""consecutive inputs of one output channel that share a scale"""
Plain = Literal["float32", "bfloat16", "float16", "int64", "bool"]
"""the dtype of a tensor that is not packed, by torch's name"""

ITEM_BYTES: Mapping[Plain, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "bool": 1,
}
SCALE_BYTES = ITEM_BYTES["float16"]
"""of a group"""
TRAINED_BYTES: Mapping[Literal["weight", "gradient", "moments"], int] = {
    "weight": ITEM_BYTES["float32"],
    "gradient": ITEM_BYTES["float32"],
    "moments": 2 * ITEM_BYTES["float32"],
}
"""of a parameter under AdamW, which is in fp32 whatever the computation is in"""


def group_bytes(bits: Bits) -> int:
    """Of 32 weights and their scale."""
    return GROUP * bits // 8 + SCALE_BYTES


def up(size: int, multiple: int) -> int:
    """The next multiple of `multiple`, or `size` itself."""
    return -(-size // multiple) * multiple
