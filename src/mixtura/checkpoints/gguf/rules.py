"""Quantises weights by llama.cpp's rule, to compare the result with Mixtura's quantisation.

N rows and K columns of a matrix.
"""

import numpy as np
from gguf import GGMLQuantizationType, quantize
from torch import Tensor

from mixtura.checkpoints.gguf.blocks import unpacked
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.kernels.packed.groups import Bits, Groups

_KINDS: dict[Bits, Kind] = {
    4: Kind.Q4_0,
    8: Kind.Q8_0,
}


def llama_cpp_groups(w_NK: Tensor, bits: Bits) -> Groups:
    """Quantise a matrix to Q4_0 or Q8_0 with the package `gguf`.

    The package's rule computes the scale of a group from the group's largest weight.
    """
    rows = quantize(np.ascontiguousarray(w_NK.float().numpy()), GGMLQuantizationType(_KINDS[bits]))
    groups = unpacked(rows, _KINDS[bits])
    assert groups is not None, "rounding by the largest weight gives no -128"
    return groups
