"""The bytes of a position in each kind of cache.

A layer with a window keeps all positions too, so a window changes no size.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

from mixtura.shapes.attention import LatentAttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.rope import LongRopeScaling
from mixtura.shapes.storage.numbers import ITEM_BYTES, Plain

KVKind = Literal["bf16", "int8", "fp32"]
"""the numbers in the engine's cache; each int8 vector has a scale in fp32"""
_NUMBER_BYTES: Mapping[KVKind, int] = {"bf16": 2, "int8": 1, "fp32": 4}


class KVDims(NamedTuple):
    """The numbers that one layer keeps of a position."""

    kv_heads: int
    key_dim: int
    value_dim: int
    values_in_keys: bool
    """true for latent attention: one head, whose values are the first dims of its keys"""

    @classmethod
    def of(cls, shape: DecoderShape) -> Self:
        heads = shape.attention
        if isinstance(heads, LatentAttentionShape):
            return cls(1, heads.kv_rank + heads.rope_dim, heads.kv_rank, values_in_keys=True)
        return cls(heads.kv_heads, heads.head_dim, heads.head_dim, values_in_keys=False)

    @property
    def vectors(self) -> int:
        return self.kv_heads * (1 if self.values_in_keys else 2)

    @property
    def numbers(self) -> int:
        values = 0 if self.values_in_keys else self.value_dim
        return self.kv_heads * (self.key_dim + values)


def bytes_of_position(shape: DecoderShape, kind: KVKind) -> int:
    """In the engine's cache: all layers, one position of one slot."""
    dims = KVDims.of(shape)
    scales = dims.vectors * ITEM_BYTES["float32"] if kind == "int8" else 0
    return shape.layers * (dims.numbers * _NUMBER_BYTES[kind] + scales)


def bytes_of_cache(shape: DecoderShape, slots: int, context: int, kind: KVKind) -> int:
    """The engine's cache: `slots` sequences of `context` positions each."""
    return slots * context * bytes_of_position(shape, kind)


def plain_bytes_of_position(shape: DecoderShape, dtype: Plain) -> int:
    """In a decoder's own cache, in the dtype of its weights."""
    return shape.layers * KVDims.of(shape).numbers * ITEM_BYTES[dtype]


def bytes_of_text(shape: DecoderShape) -> int:
    """The token of a position, which is kept beside either cache under LongRoPE alone.

    A text that grows beyond the original context has to be read again.
    """
    long = isinstance(shape.attention.rope_scaling, LongRopeScaling)
    return ITEM_BYTES["int64"] if long else 0
