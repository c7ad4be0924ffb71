"""Sizes in bytes of numbers, of packed files, and of positions in a KV cache. No torch.

Packing, kernels and caches compute their sizes with these functions.
"""

from mixtura.shapes.storage.cache import (
    SNAPSHOTS,
    KVDims,
    KVKind,
    bytes_of_cache,
    bytes_of_position,
    bytes_of_states,
    bytes_of_text,
    plain_bytes_of_position,
)
from mixtura.shapes.storage.numbers import (
    GROUP,
    ITEM_BYTES,
    TRAINED_BYTES,
    Bits,
    Plain,
    group_bytes,
    up,
)
from mixtura.shapes.storage.packed import (
    FFNs,
    Format,
    Placed,
    Planned,
    TensorKind,
    data_bytes,
    packed_layout,
    planned_of,
)
from mixtura.shapes.storage.tiles import (
    ALIGNMENT,
    BLOCK,
    PAGE,
    TILE,
    UNIT,
    block_bytes,
    expert_bytes,
    tiled_bytes,
)

__all__ = [
    "ALIGNMENT",
    "BLOCK",
    "GROUP",
    "ITEM_BYTES",
    "PAGE",
    "SNAPSHOTS",
    "TILE",
    "TRAINED_BYTES",
    "UNIT",
    "Bits",
    "FFNs",
    "Format",
    "KVDims",
    "KVKind",
    "Placed",
    "Plain",
    "Planned",
    "TensorKind",
    "block_bytes",
    "bytes_of_cache",
    "bytes_of_position",
    "bytes_of_states",
    "bytes_of_text",
    "data_bytes",
    "expert_bytes",
    "group_bytes",
    "packed_layout",
    "plain_bytes_of_position",
    "planned_of",
    "tiled_bytes",
    "up",
]
