"""The key-value cache: preallocated, filled from the front.

B sequences, G key-value heads, L positions, S new positions, C head dim; R rank of a latent, P dims
of the key that goes with it.
"""

from abc import ABC
from typing import Self

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape
from mixtura.shapes.storage.cache import KVDims


class PositionCache(ABC):
    """What one layer keeps of each position; `length` positions are filled."""

    length: int = 0

    @property
    def device(self) -> torch.device:
        return self.kept[0].device

    kept: tuple[Tensor, ...]


class LayerCache(PositionCache):
    """Keys and values of one layer, (B, G, capacity, C)."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.kept = (keys, values)

    def extend(self, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Append S positions; gives all positions so far, as views."""
        assert k_BGSC.shape[0] == self.keys.shape[0], "one sequence would be copied into all"
        start, end = self.length, self.length + k_BGSC.shape[2]
        self.keys[:, :, start:end] = k_BGSC
        self.values[:, :, start:end] = v_BGSC
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class LatentCache(PositionCache):
    """Latents and turned keys of one layer, (B, capacity, R) and (B, capacity, P)."""

    def __init__(self, latents: Tensor, keys: Tensor) -> None:
        self.latents, self.keys = latents, keys
        self.kept = (latents, keys)

    def extend(self, latent_BSR: Tensor, key_BSP: Tensor) -> tuple[Tensor, Tensor]:
        """Append S positions; gives all positions so far, as views."""
        assert latent_BSR.shape[0] == self.latents.shape[0], "one would be copied into all"
        start, end = self.length, self.length + latent_BSR.shape[1]
        self.latents[:, start:end] = latent_BSR
        self.keys[:, start:end] = key_BSP
        self.length = end
        return self.latents[:, :end], self.keys[:, :end]


class KVCache:
    """One cache a layer. A sequence longer than `capacity` is refused."""

    def __init__(self, layers: list[LayerCache] | list[LatentCache], capacity: int) -> None:
        self.layers, self.capacity = layers, capacity
        self._valid: Tensor | None = None
        self._ids: Tensor | None = None
        # By which of LongRoPE's factors the keys held were turned; None: some by either.
        self._long: bool | None = False
        self._turning = False

    @classmethod
    def empty(
        cls,
        shape: DecoderShape,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Self:
        def room(*size: int) -> Tensor:
            return torch.empty(batch, *size, dtype=dtype, device=device)

        dims = KVDims.of(shape)
        if dims.values_in_keys:
            ranks = (dims.value_dim, dims.key_dim - dims.value_dim)
            latent = [
                LatentCache(*(room(capacity, rank) for rank in ranks)) for _ in range(shape.layers)
            ]
            return cls(latent, capacity)
        sizes = [(dims.kv_heads, capacity, width) for width in (dims.key_dim, dims.value_dim)]
        return cls(
            [LayerCache(*(room(*size) for size in sizes)) for _ in range(shape.layers)], capacity
        )

    @property
    def length(self) -> int:
        return self.layers[0].length

    def check_room(self, new: int) -> None:
        if self.length + new > self.capacity:
            raise ConfigError(
                f"{self.length + new} positions exceed the cache's {self.capacity}; "
                "shorten the prompt or ask for fewer tokens"
            )

    def remember(self, valid_BS: Tensor | None, batch: int, new: int) -> Tensor | None:
        """Note which of the next `new` positions are no padding.

        Gives valid_BL of all positions then, or None where none is padding.
        """
        if self._valid is None:
            if valid_BS is None:
                return None
            self._valid = torch.ones(batch, self.capacity, dtype=torch.bool, device=valid_BS.device)
        start, end = self.length, self.length + new
        # What an earlier, longer text left here is not this one's.
        self._valid[:, start:end] = True if valid_BS is None else valid_BS
        return self._valid[:, :end]

    def whole_text(
        self, tokens_BS: Tensor, valid_BS: Tensor | None, *, long: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What to read, and which of it is no padding: these tokens, as a rule.

        All since the beginning where keys held were turned by LongRoPE's other factors; the cache
        is empty then. Call `end_pass` once every layer has read it: until then, and after an
        interruption, the next pass reads all again.
        """
        batch, new = tokens_BS.shape
        start, end = self.length, self.length + new
        if self._ids is None:
            self._ids = tokens_BS.new_zeros(batch, self.capacity)
        self._ids[:, start:end] = tokens_BS
        self._turning = long
        if start == 0 or self._long == long:
            self._long = long
            return tokens_BS, valid_BS
        self._long = None
        valid_BL = self.remember(valid_BS, batch, new)
        for layer in self.layers:
            layer.length = 0
        return self._ids[:, :end], valid_BL

    def end_pass(self) -> None:
        """Every layer holds the keys of the pass."""
        self._long = self._turning
