"""The key-value cache: preallocated, filled from the front.

B sequences, G key-value heads, L positions, C head dim.
"""

from typing import Self

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape


class LayerCache:
    """Keys and values of one layer, (B, G, capacity, C); `length` positions are filled."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def extend(self, k_BGS: Tensor, v_BGS: Tensor) -> tuple[Tensor, Tensor]:
        """Append S positions; gives all positions so far, as views."""
        assert k_BGS.shape[0] == self.keys.shape[0], "one sequence would be copied into all"
        start, end = self.length, self.length + k_BGS.shape[2]
        self.keys[:, :, start:end] = k_BGS
        self.values[:, :, start:end] = v_BGS
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One LayerCache a layer. A sequence longer than `capacity` is refused."""

    def __init__(self, layers: list[LayerCache], capacity: int) -> None:
        self.layers, self.capacity = layers, capacity

    @classmethod
    def empty(
        cls,
        shape: DecoderShape,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Self:
        heads = shape.attention
        size = (batch, heads.kv_heads, capacity, heads.head_dim)
        layers = [
            LayerCache(
                torch.empty(size, dtype=dtype, device=device),
                torch.empty(size, dtype=dtype, device=device),
            )
            for _ in range(shape.layers)
        ]
        return cls(layers, capacity)

    @property
    def length(self) -> int:
        return self.layers[0].length

    def check_room(self, new: int) -> None:
        if self.length + new > self.capacity:
            raise ConfigError(
                f"{self.length + new} positions exceed the cache's {self.capacity}; "
                "shorten the prompt or ask for fewer tokens"
            )
