"""The bytes of plain numbers, and of quantised weights in groups that share a scale."""

from collections.abc import Mapping
from typing import Literal

Bits = Literal[4, 8]
"""the bits of a packed weight"""
GROUP = 32
"""the number of consecutive inputs of one output channel that share a scale"""
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
"""the bytes of a group's scale"""
TRAINED_BYTES: Mapping[Literal["weight", "gradient", "moments"], int] = {
    "weight": ITEM_BYTES["float32"],
    "gradient": ITEM_BYTES["float32"],
    "moments": 2 * ITEM_BYTES["float32"],
}
"""the bytes that training with AdamW keeps for each parameter; all are in fp32, even if the forward
pass computes in bf16"""


def group_bytes(bits: Bits) -> int:
    """The bytes of a group: 32 weights and their scale."""
    return GROUP * bits // 8 + SCALE_BYTES


def up(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple of `multiple`."""
    return -(-size // multiple) * multiple
