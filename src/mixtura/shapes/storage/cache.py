"""The bytes of a position in each kind of KV cache, and of recurrent layers' states.

A layer with a window keeps all positions, as other layers do, so a window changes no size. A layer
with a recurrent mixer keeps no positions: its state has the same size for a sequence of any length.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

from mixtura.shapes.attention import LatentAttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.rope import LongRopeScaling
from mixtura.shapes.storage.numbers import ITEM_BYTES, Plain

KVKind = Literal["bf16", "int8", "fp32"]
"""the format of numbers in the engine's KV cache; each int8 vector has a scale in fp32"""
SNAPSHOTS = 4
"""the number of snapshots that a recurrent layer keeps for each sequence. A snapshot is a copy of
the state at an earlier position, to which the sequence can go back."""
_NUMBER_BYTES: Mapping[KVKind, int] = {"bf16": 2, "int8": 1, "fp32": 4}


class KVDims(NamedTuple):
    """The dims of the keys and values that one layer keeps for each position."""

    kv_heads: int
    key_dim: int
    value_dim: int
    values_in_keys: bool
    """true for latent attention: it keeps one head, whose values are the first dims of its keys"""

    @classmethod
    def of(cls, shape: DecoderShape) -> Self:
        heads = shape.attention
        if isinstance(heads, LatentAttentionShape):
            return cls(1, heads.kv_rank + heads.rope_dim, heads.kv_rank, values_in_keys=True)
        return cls(heads.kv_heads, heads.head_dim, heads.head_dim, values_in_keys=False)

    @property
    def vectors(self) -> int:
        """The number of vectors that are kept for a position."""
        return self.kv_heads * (1 if self.values_in_keys else 2)

    @property
    def numbers(self) -> int:
        """The number of numbers that are kept for a position."""
        values = 0 if self.values_in_keys else self.value_dim
        return self.kv_heads * (self.key_dim + values)


def bytes_of_position(shape: DecoderShape, kind: KVKind) -> int:
    """Bytes of one position of one sequence in all layers of the engine's KV cache."""
    dims = KVDims.of(shape)
    scales = dims.vectors * ITEM_BYTES["float32"] if kind == "int8" else 0
    return len(shape.attention_layers) * (dims.numbers * _NUMBER_BYTES[kind] + scales)


def bytes_of_cache(shape: DecoderShape, slots: int, context: int, kind: KVKind) -> int:
    """Bytes of the engine's cache for `slots` sequences of `context` positions each."""
    return slots * (context * bytes_of_position(shape, kind) + bytes_of_states(shape))


def bytes_of_states(shape: DecoderShape) -> int:
    """Bytes of one sequence's states and snapshots in all recurrent layers, for any length."""
    if shape.recurrence is None:
        return 0
    numbers = len(shape.recurrence.layers) * shape.recurrence.state_numbers(shape.width)
    return (1 + SNAPSHOTS) * numbers * ITEM_BYTES["float32"]


def plain_bytes_of_position(shape: DecoderShape, dtype: Plain) -> int:
    """Bytes of one position in a decoder's own KV cache, whose dtype is that of the weights."""
    return len(shape.attention_layers) * KVDims.of(shape).numbers * ITEM_BYTES[dtype]


def bytes_of_text(shape: DecoderShape) -> int:
    """Bytes for each position of the tokens that LongRoPE and recurrent layers keep; 0 otherwise.

    LongRoPE changes its angles when a text grows beyond the original context. The whole text is
    then read again, so its tokens are kept. To go back to an earlier position, recurrent layers
    read the tokens after a snapshot again. Prefill and decode round differently, so one more byte
    for each token states whether decode read it.
    """
    if shape.recurrence is not None:
        return ITEM_BYTES["int64"] + 1
    long = isinstance(shape.attention.rope_scaling, LongRopeScaling)
    return ITEM_BYTES["int64"] if long else 0
