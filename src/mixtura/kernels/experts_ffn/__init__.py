"""The FFNs of all experts, over rows sorted by expert."""

from mixtura.kernels.experts_ffn.mkl import bf16_rows, bf16_takes, one_token_swiglu, ragged_takes
from mixtura.kernels.experts_ffn.naive import Biases, experts_ffn_naive
from mixtura.kernels.experts_ffn.torch import (
    Products,
    SegmentProducts,
    experts_ffn,
    grouped_mm_takes,
)

__all__ = [
    "Biases",
    "Products",
    "SegmentProducts",
    "bf16_rows",
    "bf16_takes",
    "experts_ffn",
    "experts_ffn_naive",
    "grouped_mm_takes",
    "one_token_swiglu",
    "ragged_takes",
]
