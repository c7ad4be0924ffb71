"""The quantised, memory-mapped format, and modules that compute from it."""

from mixtura.packed.file import PackedFile, is_packed
from mixtura.packed.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedFFN,
    PackedLinear,
    dispatch_packed,
)
from mixtura.packed.phase import decoding

__all__ = [
    "PackedEmbedding",
    "PackedExperts",
    "PackedFFN",
    "PackedFile",
    "PackedLinear",
    "decoding",
    "dispatch_packed",
    "is_packed",
]
