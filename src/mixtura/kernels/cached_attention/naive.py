"""The keys and values that a layer caches, and attention over them, computed row by row.

A row is one token of a sequence. A slot is the place of one sequence in the cache. R rows, A query
heads, G key-value heads, H = A/G query heads that share a key, C key dim, V value dim, L positions
that one row attends to.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_LARGEST = 127.0


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's keys and values, at every position of every slot.

    In the absorbed form of latent attention, a value is the first dims of its key. Such values are
    not stored again: `values` is a view of `keys`, and `values_in_keys` is True.
    """

    keys: Tensor
    """(slots, G, capacity, C) in fp32, bf16 or int8"""
    values: Tensor
    """(slots, G, capacity, V), of the same dtype"""
    key_scales: Tensor | None = None
    """(slots, G, capacity) in fp32, where a key is its int8 numbers times its scale; None unless
    the dtype is int8"""
    value_scales: Tensor | None = None
    values_in_keys: bool = False

    @classmethod
    def empty(
        cls,
        slots: int,
        kv_heads: int,
        capacity: int,
        key_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        *,
        values_in_keys: bool = False,
        device: torch.device | None = None,
    ) -> Self:
        """A cache for `slots` sequences of `capacity` positions.

        The numbers are not set, so on a CPU memory is used only for positions that are written.
        """
        places = (slots, kv_heads, capacity)
        keys = torch.empty(*places, key_dim, dtype=dtype, device=device)
        key_scales = torch.empty(places, device=device) if dtype == torch.int8 else None
        if values_in_keys:
            return cls(keys, keys[..., :value_dim], key_scales, key_scales, values_in_keys=True)
        values = torch.empty(*places, value_dim, dtype=dtype, device=device)
        value_scales = torch.empty(places, device=device) if dtype == torch.int8 else None
        return cls(keys, values, key_scales, value_scales)

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


def append_naive(
    cache: LayerKV, k_RGC: Tensor, v_RGV: Tensor | None, slot_R: Tensor, position_R: Tensor
) -> None:
    """Store each row's key and value at the row's position of its slot; the naive twin of `append`.

    In an int8 cache the largest absolute value of each key, and of each value, becomes 127. `v_RGV`
    is None if values are stored in keys.
    """
    _keep(cache.keys, cache.key_scales, k_RGC, slot_R, position_R)
    if v_RGV is not None:
        _keep(cache.values, cache.value_scales, v_RGV, slot_R, position_R)


def _keep(
    kept: Tensor, scales: Tensor | None, x_RGC: Tensor, slot_R: Tensor, position_R: Tensor
) -> None:
    if scales is None:
        kept[slot_R, :, position_R] = x_RGC.to(kept.dtype)
        return
    x_RGC = x_RGC.float()
    size_RG = x_RGC.abs().amax(-1)
    # The dividend is a tensor: torch computes a Python float divided by a tensor as the float times
    # the reciprocal, which rounds twice.
    inverse_RG = torch.where(size_RG > 0, torch.full_like(size_RG, _LARGEST) / size_RG, 0.0)
    kept[slot_R, :, position_R] = (x_RGC * inverse_RG[..., None]).round().to(torch.int8)
    scales[slot_R, :, position_R] = size_RG / _LARGEST


def cached_attention_naive(
    q_RAC: Tensor,
    cache: LayerKV,
    slot_R: Tensor,
    position_R: Tensor,
    scale: float,
    window: int | None = None,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """out_RAV, row by row; the naive twin of `cached_attention` in all phases."""
    out_RAV = torch.empty(*q_RAC.shape[:2], cache.values.shape[3], device=q_RAC.device)
    rows = zip(q_RAC.float(), slot_R.tolist(), position_R.tolist(), strict=True)
    for row, (q_AC, slot, position) in enumerate(rows):
        first = 0 if window is None else max(0, position - window + 1)
        seen = slice(first, position + 1)
        k_GLC = read_positions(cache.keys, cache.key_scales, slot, seen)
        v_GLV = read_positions(cache.values, cache.value_scales, slot, seen)
        q_GHC = q_AC.unflatten(0, (len(k_GLC), -1))
        score_GHL = (q_GHC @ k_GLC.mT) * scale
        if sinks_A is not None:
            sink_GH1 = sinks_A.float().view(*q_GHC.shape[:2], 1)
            score_GHL = torch.cat([score_GHL, sink_GH1], -1)
        probs_GHL = score_GHL.softmax(-1)[..., : k_GLC.shape[1]]
        out_RAV[row] = (probs_GHL @ v_GLV).flatten(0, 1)
    return out_RAV


def read_positions(kept: Tensor, scales: Tensor | None, slot: int, seen: slice) -> Tensor:
    """Keys (G, L, C) or values (G, L, V) of one slot at the positions `seen`, in fp32."""
    x_GLC = kept[slot, :, seen].float()
    return x_GLC if scales is None else x_GLC * scales[slot, :, seen, None]
