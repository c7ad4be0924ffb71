"""Packed models: the mapped file of quantised weights, and modules that compute from it."""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.kernels.phase import decoding
    from mixtura.packed.file import PackedFile
    from mixtura.packed.modules import (
        PackedEmbedding,
        PackedExperts,
        PackedFFN,
        PackedLinear,
    )

__all__ = [
    "PackedEmbedding",
    "PackedExperts",
    "PackedFFN",
    "PackedFile",
    "PackedLinear",
    "decoding",
]

_HOMES = {
    "PackedEmbedding": "mixtura.packed.modules",
    "PackedExperts": "mixtura.packed.modules",
    "PackedFFN": "mixtura.packed.modules",
    "PackedFile": "mixtura.packed.file",
    "PackedLinear": "mixtura.packed.modules",
    "decoding": "mixtura.kernels.phase",
}

# Type checkers must not see `__getattr__`, which would make them accept any misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
