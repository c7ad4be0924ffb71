"""Attention over the keys and values in a layer's cache."""

from mixtura.kernels.cached_attention.cpu import append, cache_of, cached_attention
from mixtura.kernels.cached_attention.naive import LayerKV, append_naive, cached_attention_naive
from mixtura.kernels.cached_attention.torch import cached_attention_torch

__all__ = [
    "LayerKV",
    "append",
    "append_naive",
    "cache_of",
    "cached_attention",
    "cached_attention_naive",
    "cached_attention_torch",
]
