"""ggml's storage formats for tensors (`Kind`), and the size of their blocks.

The package `gguf` has the same tables, but its import takes 0.1 s; a test compares the tables. The
functions of `gguf` accept a `Kind`, because it is an integer.
"""

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """ggml's storage formats; a value is the format's number in a file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


class BlockSize(NamedTuple):
    """A block: `numbers` consecutive numbers of a row are stored together in `bytes` bytes."""

    numbers: int
    bytes: int


BLOCKS = {
    Kind.F32: BlockSize(1, 4),
    Kind.F16: BlockSize(1, 2),
    Kind.Q4_0: BlockSize(32, 18),
    Kind.Q4_1: BlockSize(32, 20),
    Kind.Q5_0: BlockSize(32, 22),
    Kind.Q5_1: BlockSize(32, 24),
    Kind.Q8_0: BlockSize(32, 34),
    Kind.Q8_1: BlockSize(32, 40),
    Kind.Q2_K: BlockSize(256, 84),
    Kind.Q3_K: BlockSize(256, 110),
    Kind.Q4_K: BlockSize(256, 144),
    Kind.Q5_K: BlockSize(256, 176),
    Kind.Q6_K: BlockSize(256, 210),
    Kind.Q8_K: BlockSize(256, 292),
    Kind.IQ2_XXS: BlockSize(256, 66),
    Kind.IQ2_XS: BlockSize(256, 74),
    Kind.IQ3_XXS: BlockSize(256, 98),
    Kind.IQ1_S: BlockSize(256, 50),
    Kind.IQ4_NL: BlockSize(32, 18),
    Kind.IQ3_S: BlockSize(256, 110),
    Kind.IQ2_S: BlockSize(256, 82),
    Kind.IQ4_XS: BlockSize(256, 136),
    Kind.I8: BlockSize(1, 1),
    Kind.I16: BlockSize(1, 2),
    Kind.I32: BlockSize(1, 4),
    Kind.I64: BlockSize(1, 8),
    Kind.F64: BlockSize(1, 8),
    Kind.IQ1_M: BlockSize(256, 56),
    Kind.BF16: BlockSize(1, 2),
    Kind.TQ1_0: BlockSize(256, 54),
    Kind.TQ2_0: BlockSize(256, 66),
    Kind.MXFP4: BlockSize(32, 17),
    Kind.NVFP4: BlockSize(64, 36),
    Kind.Q1_0: BlockSize(128, 18),
}
