"""Unpacks GGUF's blocks to fp32: K-quants by a compiled kernel, other kinds by the package gguf.

N rows, X bytes of a row, K columns.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind

if TYPE_CHECKING:
    from mixtura.kernels.native import InstructionSet

K_QUANTS = frozenset({Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K})


def numbers(
    row_NX: NDArray[np.uint8], kind: Kind, kernels: "InstructionSet" = "auto"
) -> NDArray[np.float32]:
    """Compute the result of `numbers_naive`; K-quants by the compiled kernels, if they are built.

    All instruction sets give the same bits, except for the payload of a NaN.
    """
    from mixtura.kernels.native import check_offered, native, number_of

    module = native()
    if module is None or kind not in K_QUANTS:
        check_offered(kernels)
        return numbers_naive(row_NX, kind)
    weights, size = BLOCKS[kind]
    rows, blocks = row_NX.shape[0], row_NX.shape[1] // size
    assert row_NX.shape[1] == blocks * size, "a row is whole blocks"
    row_NX = np.ascontiguousarray(row_NX)
    number_NK = np.empty((rows, blocks * weights), np.float32)
    module.unpack_blocks(
        int(kind), row_NX.ctypes.data, rows * blocks, number_of(kernels), number_NK.ctypes.data
    )
    return number_NK


def numbers_naive(row_NX: NDArray[np.uint8], kind: Kind) -> NDArray[np.float32]:
    """Unpack by the package gguf. Raises NotImplementedError for a kind that it cannot unpack."""
    from gguf import GGMLQuantizationType, dequantize

    # Infinite and NaN scales are kept, and numpy must not warn about them.
    with np.errstate(all="ignore"):
        return dequantize(row_NX, GGMLQuantizationType(kind))
