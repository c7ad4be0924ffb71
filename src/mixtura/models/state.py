"""What a decoder keeps of the sequences that it has read: keys and values, in slots.

The decoder's own passes and the engine's steps use the same state.

B sequences, each in a slot, G key-value heads, L positions, S new positions, C key dim, V value
dim. Of latent attention: R rank of the latent, P dims of the rotated key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.cached_attention import LayerKV
from mixtura.models.long_texts import LongTexts
from mixtura.models.recurrence import States
from mixtura.models.recurrent_state import INTERVAL, Histories, RecurrentLayer
from mixtura.shapes import DecoderShape
from mixtura.shapes.rope import LongRopeScaling
from mixtura.shapes.storage.cache import KVDims

Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stores one layer's new keys and values, of all slots; returns those of all positions."""


class LayerState(Protocol):
    """What one layer keeps of every slot; each kind of layer implements it."""

    @property
    def bytes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def snapshot(self, slot: int) -> States | None:
        """A copy of the data that a later pass overwrites; None where there is no such data."""
        ...

    def rewind(self, slot: int, kept: States | None) -> None:
        """Restore a slot from what `snapshot` returned."""
        ...


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

    @property
    def device(self) -> torch.device:
        return self.kv.keys.device

    def snapshot(self, slot: int) -> None:
        """No copy: a later pass leaves the positions before a length unchanged."""

    def rewind(self, slot: int, kept: States | None) -> None:
        """Nothing to restore; see `snapshot`."""

    def extend(self, start: int, k_BGSC: Tensor, v_BGSV: Tensor, /) -> tuple[Tensor, Tensor]:
        """Store S positions from `start` on; returns views of all positions so far."""
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
    """Latents and rotated keys of one layer, side by side: keys (B, 1, capacity, R + P)."""

    def extend(self, start: int, latent_BSR: Tensor, key_BSP: Tensor, /) -> tuple[Tensor, Tensor]:
        """As `KVLayer.extend`, for latents and rotated keys."""
        rank = latent_BSR.shape[2]
        end = self._end(start, latent_BSR, latent_BSR.shape[1])
        kept_BLC = self.kv.keys[:, 0]
        kept_BLC[:, start:end, :rank] = latent_BSR
        kept_BLC[:, start:end, rank:] = key_BSP
        return kept_BLC[:, :end, :rank], kept_BLC[:, :end, rank:]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A place in the text of one slot, to which `State.rewind` goes back."""

    slot: int
    length: int
    layers: tuple[States | None, ...]


class State:
    """The state of every layer, with `slots` sequences of at most `capacity` positions each.

    Passes over all slots at once (`Decoder.forward`) continue at `length`, which counts padding.
    Steps of the engine give the slot and the position of each row, and do not use `length`.
    """

    def __init__(
        self,
        layers: tuple[KVLayer | RecurrentLayer, ...],
        slots: int,
        capacity: int,
        texts: LongTexts | None,
    ) -> None:
        self.layers, self.slots, self.capacity = layers, slots, capacity
        recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
        self.histories = Histories(recurrent, slots, capacity) if recurrent else None
        """with recurrent layers alone: what each slot has read, and the way back"""
        self.texts = texts
        """under LongRoPE the tokens of each slot, since its keys may have to be computed again"""
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
        """A new state. Its memory is reserved at once, and used as positions are filled."""
        dims = KVDims.of(shape)
        sizes = (slots, dims.kv_heads, capacity, dims.key_dim, dims.value_dim)
        kind = LatentLayer if dims.values_in_keys else KVLayer

        def layer(number: int) -> KVLayer | RecurrentLayer:
            recurrence = shape.recurrence_of(number)
            if recurrence is not None:
                return RecurrentLayer(recurrence.state(shape.width), slots, device)
            latent = dims.values_in_keys
            return kind(LayerKV.empty(*sizes, dtype, values_in_keys=latent, device=device))

        layers = tuple(map(layer, range(shape.layers)))
        scaling, texts = shape.attention.rope_scaling, None
        if isinstance(scaling, LongRopeScaling):
            texts = LongTexts(scaling.original_context, slots, capacity, device)
        return cls(layers, slots, capacity, texts)

    @property
    def device(self) -> torch.device:
        return self.layers[0].device

    @property
    def kv_layers(self) -> list[KVLayer]:
        """The layers with attention."""
        return [layer for layer in self.layers if isinstance(layer, KVLayer)]

    @property
    def bytes(self) -> int:
        """Bytes of all layers, without the tokens of LongRoPE."""
        return sum(layer.bytes for layer in self.layers)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """The place after the first `length` tokens of a slot, valid until one of them changes."""
        histories = self.histories
        if histories is not None and histories.held(slot) != length:
            # Going back there reads tokens again, from a copy that `histories` has.
            return Snapshot(slot, length, (None,) * len(self.layers))
        return Snapshot(slot, length, tuple(layer.snapshot(slot) for layer in self.layers))

    def rewind(self, snapshot: Snapshot) -> int:
        """Go back to a snapshot; returns its length, where the sequence goes on."""
        for layer, kept in zip(self.layers, snapshot.layers, strict=True):
            layer.rewind(snapshot.slot, kept)
        if self.histories is not None and any(kept is not None for kept in snapshot.layers):
            self.histories.rewound(snapshot.slot, snapshot.length)
        return snapshot.length

    def check_room(self, new: int) -> None:
        """Raises ConfigError where a pass of `new` positions exceeds the capacity."""
        if self.length + new > self.capacity:
            raise ConfigError(
                f"{self.length + new} positions exceed the cache's {self.capacity}; "
                "shorten the prompt or ask for fewer tokens"
            )

    def to_read(
        self, tokens_BS: Tensor, valid_BS: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """(tokens, valid, start): the tokens that a pass reads, False for padding, first position.

        Usually these are the given tokens, from `length` on. Where LongRoPE needs other factors
        than the cached keys have, they are all tokens from position 0 on; where recurrent layers
        have read beyond `length`, all tokens from a copy of their states on. Call `end_pass` once
        every layer has read them. Until then `length` is unchanged, so an interrupted pass can be
        repeated.
        """
        if self.histories is not None:
            return self._to_read_recurrent(self.histories, tokens_BS, valid_BS)
        if self.texts is None or not self.texts.to_read_whole(tokens_BS, self.length):
            return tokens_BS, valid_BS, self.length
        batch, new = tokens_BS.shape
        valid_BL = self.remember(valid_BS, self.length, batch, new)
        return self.texts.token_SL[:, : self.length + new], valid_BL, 0

    def _to_read_recurrent(
        self, histories: Histories, tokens_BS: Tensor, valid_BS: Tensor | None
    ) -> tuple[Tensor, Tensor | None, int]:
        batch, new = tokens_BS.shape
        assert batch == self.slots, "one sequence would be copied into all"
        (start,) = {histories.go_to(slot, self.length) for slot in range(self.slots)}
        end = self.length + new
        valid_BL = self.remember(valid_BS, self.length, batch, new)
        position_L = torch.arange(self.length, end)
        slot_B1 = torch.arange(batch)[:, None]
        histories.begin(slot_B1, position_L, tokens_BS.cpu(), decoded=False)
        tokens_BL = histories.tokens(start, end).to(tokens_BS.device)
        return tokens_BL, None if valid_BL is None else valid_BL[:, start:], start

    def remember(self, valid_BS: Tensor | None, start: int, batch: int, new: int) -> Tensor | None:
        """Store which of the `new` positions from `start` on are padding.

        Returns valid_BL of all positions, or None if there has been no `valid_BS` so far.
        """
        if self._valid is None:
            if valid_BS is None:
                return None
            self._valid = torch.ones(batch, self.capacity, dtype=torch.bool, device=valid_BS.device)
        end = start + new
        # This overwrites the values of an earlier text at these positions.
        self._valid[:, start:end] = True if valid_BS is None else valid_BS
        return self._valid[:, :end]

    def end_pass(self, length: int) -> None:
        """Call this once every layer has `length` positions."""
        before, self.length = self.length, length
        if self.texts is not None:
            self.texts.end_pass()
        if self.histories is not None:
            for slot in range(self.slots):
                self.histories.end(slot, length)
                if length - before > 1 or length % INTERVAL == 0:
                    self.histories.keep(slot)
