"""What a decoder keeps of the sequences that it has read: the one state, for every way to read on.

B sequences, each in a slot, G key-value heads, L positions, S new positions, C key dim, V value
dim; R rank of a latent, P dims of the key that goes with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.cached_attention import LayerKV
from mixtura.models.long_texts import LongTexts
from mixtura.shapes import DecoderShape
from mixtura.shapes.rope import LongRopeScaling
from mixtura.shapes.storage.cache import KVDims

Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keeps what one pass adds to a layer, of all slots; gives all that the layer then holds."""


class LayerState(Protocol):
    """What one layer keeps of every slot, whatever its kind."""

    @property
    def bytes(self) -> int: ...

    def snapshot(self, slot: int) -> Tensor | None:
        """What a later pass overwrites, copied; None where a length says all."""
        ...

    def rewind(self, slot: int, kept: Tensor | None) -> None: ...


class KVLayer(LayerState):
    """Keys (B, G, capacity, C) and values (B, G, capacity, V) of one layer."""

    def __init__(self, kv: LayerKV) -> None:
        self.kv = kv

    @property
    def bytes(self) -> int:
        kv = self.kv
        kept = [kv.keys, kv.key_scales]
        if not kv.values_in_keys:
            kept += [kv.values, kv.value_scales]
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def snapshot(self, slot: int) -> None:
        """Nothing: what lies behind a length is forgotten when it is written anew."""

    def rewind(self, slot: int, kept: Tensor | None) -> None:
        """Nothing, as `snapshot`."""

    def extend(self, start: int, k_BGSC: Tensor, v_BGSV: Tensor, /) -> tuple[Tensor, Tensor]:
        """Keep S positions from `start` on; gives all positions so far, as views."""
        keys, values = self.kv.keys, self.kv.values
        end = self._end(start, k_BGSC, k_BGSC.shape[2])
        keys[:, :, start:end] = k_BGSC
        values[:, :, start:end] = v_BGSV
        return keys[:, :, :end], values[:, :, :end]

    def _end(self, start: int, new: Tensor, count: int) -> int:
        assert len(new) == len(self.kv.keys), "one sequence would be copied into all"
        assert self.kv.key_scales is None, "torch's attention reads no int8"
        return start + count


class LatentLayer(KVLayer):
    """Latents and turned keys of one layer, side by side: keys (B, 1, capacity, R + P)."""

    def extend(self, start: int, latent_BSR: Tensor, key_BSP: Tensor, /) -> tuple[Tensor, Tensor]:
        """As `KVLayer.extend`; gives latents and turned keys."""
        rank = latent_BSR.shape[2]
        end = self._end(start, latent_BSR, latent_BSR.shape[1])
        kept_BLC = self.kv.keys[:, 0]
        kept_BLC[:, start:end, :rank] = latent_BSR
        kept_BLC[:, start:end, rank:] = key_BSP
        return kept_BLC[:, :end, :rank], kept_BLC[:, :end, rank:]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A place in the text of one slot, to go back to."""

    slot: int
    length: int
    layers: tuple[Tensor | None, ...]


class State:
    """A layer's state for each layer, with a slot for each sequence of at most `capacity`.

    Passes over all slots at once (`Decoder.forward`) go on at `length`, padding included. Steps of
    an engine say the slot and position of each row instead, and leave `length` alone.
    """

    def __init__(
        self, layers: tuple[KVLayer, ...], slots: int, capacity: int, texts: LongTexts | None
    ) -> None:
        self.layers, self.slots, self.capacity = layers, slots, capacity
        self.texts = texts
        """under LongRoPE alone: the tokens of each slot, whose keys may have to be turned anew"""
        self.length = 0
        self._valid: Tensor | None = None

    @classmethod
    def empty(
        cls,
        shape: DecoderShape,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Self:
        """Allocated at once; memory is touched as positions are filled."""
        dims = KVDims.of(shape)
        sizes = (slots, dims.kv_heads, capacity, dims.key_dim, dims.value_dim)
        kind = LatentLayer if dims.values_in_keys else KVLayer
        layers = tuple(
            kind(LayerKV.empty(*sizes, dtype, values_in_keys=dims.values_in_keys, device=device))
            for _ in range(shape.layers)
        )
        scaling, texts = shape.attention.rope_scaling, None
        if isinstance(scaling, LongRopeScaling):
            texts = LongTexts(scaling.original_context, slots, capacity, device)
        return cls(layers, slots, capacity, texts)

    @property
    def device(self) -> torch.device:
        return self.layers[0].kv.keys.device

    @property
    def bytes(self) -> int:
        """Of the layers; LongRoPE's tokens are beside them."""
        return sum(layer.bytes for layer in self.layers)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """The place after `length` tokens of a slot, which holds as long as they are kept."""
        return Snapshot(slot, length, tuple(layer.snapshot(slot) for layer in self.layers))

    def rewind(self, snapshot: Snapshot) -> int:
        """Forget what came since; gives the length, at which the sequence goes on."""
        for layer, kept in zip(self.layers, snapshot.layers, strict=True):
            layer.rewind(snapshot.slot, kept)
        return snapshot.length

    def check_room(self, new: int) -> None:
        """Raises ConfigError where a pass of so many positions would not fit."""
        if self.length + new > self.capacity:
            raise ConfigError(
                f"{self.length + new} positions exceed the cache's {self.capacity}; "
                "shorten the prompt or ask for fewer tokens"
            )

    def to_read(
        self, tokens_BS: Tensor, valid_BS: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """The tokens of a pass, which of them are no padding, and where they begin.

        These tokens, as a rule. All since the beginning where keys held were turned by LongRoPE's
        other factors. Call `end_pass` once every layer has read them: until then, and after an
        interruption, `length` is what it was.
        """
        if self.texts is None or not self.texts.to_read_whole(tokens_BS, self.length):
            return tokens_BS, valid_BS, self.length
        batch, new = tokens_BS.shape
        valid_BL = self.remember(valid_BS, self.length, batch, new)
        return self.texts.token_SL[:, : self.length + new], valid_BL, 0

    def remember(self, valid_BS: Tensor | None, start: int, batch: int, new: int) -> Tensor | None:
        """Note which of the `new` positions from `start` on are no padding.

        Gives valid_BL of all positions then, or None where none is padding.
        """
        if self._valid is None:
            if valid_BS is None:
                return None
            self._valid = torch.ones(batch, self.capacity, dtype=torch.bool, device=valid_BS.device)
        end = start + new
        # What an earlier, longer text left here is not this one's.
        self._valid[:, start:end] = True if valid_BS is None else valid_BS
        return self._valid[:, :end]

    def end_pass(self, length: int) -> None:
        """Every layer holds `length` positions."""
        self.length = length
        if self.texts is not None:
            self.texts.end_pass()
