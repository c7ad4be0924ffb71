"""Attention of one decoder layer in a step of the engine; the step has rows of many sequences.

It computes with the weights of the decoder's own attention modules, and stores keys and values in
the layer's cache.

B = 1, R rows, N logit rows, D width, A query heads, G key-value heads, H = A + G, C key dim. Of
latent attention: K rank of the latent, Q query dims without RoPE, P dims with RoPE, V value dims.
"""

from typing import Protocol

import torch
from torch import Tensor

from mixtura.engine.steps import StepRows
from mixtura.kernels.cached_attention import LayerKV, append, cached_attention
from mixtura.kernels.phase import Phase
from mixtura.kernels.row_linear import row_linear_of_heads
from mixtura.models.attention import Attention, SinkAttention
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.rotary import Rotary, rotate_without_grad


class LayerAttention(Protocol):
    """Attention of one layer, with the layer's cache."""

    def __call__(
        self, x_RD: Tensor, rows: StepRows, rope: Rotary, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        """out_ND for the logit rows, or for all rows where `logit_row_N` is None.

        The cache gets the keys and values of all R rows.
        """
        ...


def selected(of_R: Tensor, logit_row_N: Tensor | None) -> Tensor:
    """The rows `logit_row_N` of a tensor; all rows for None."""
    return of_R if logit_row_N is None else of_R[logit_row_N]


class GroupedLayerAttention:
    """Grouped-query attention, with or without sinks; see `LayerAttention`."""

    def __init__(self, attention: Attention, kept: LayerKV, window: int | None) -> None:
        self._attention, self._kept, self._window = attention, kept, window
        shape = attention.shape
        self._scale = shape.scale or shape.head_dim**-0.5
        self._heads = [shape.heads, shape.kv_heads]
        self._sinks_A = attention.sinks.detach() if isinstance(attention, SinkAttention) else None

    def __call__(
        self, x_RD: Tensor, rows: StepRows, rope: Rotary, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        qk_BRHC, v_BRGC = self._attention.project(x_RD[None])
        rotated_BRHC = rotate_without_grad(qk_BRHC, rope.cos_SC, rope.sin_SP)
        q_RAC, k_RGC = self._attention.after_rotation(rotated_BRHC)[0].split(self._heads, 1)
        append(self._kept, k_RGC, v_BRGC[0], rows.slot_R, rows.position_R)
        out_NAC = cached_attention(
            selected(q_RAC, logit_row_N),
            self._kept,
            selected(rows.slot_R, logit_row_N),
            selected(rows.position_R, logit_row_N),
            self._scale,
            phase,
            self._window,
            self._sinks_A,
        )
        mixed_NX = out_NAC.flatten(1).to(x_RD.dtype)
        return self._attention.finish(mixed_NX, selected(x_RD, logit_row_N))


class LatentLayerAttention:
    """Latent attention in its absorbed form, with one key head that all query heads share.

    A cached key is the latent followed by the part that RoPE rotates, so C = K + P. The latent
    alone is also the value. See `LatentAttention.absorbed`.
    """

    def __init__(self, attention: LatentAttention, kept: LayerKV) -> None:
        self._attention, self._kept, shape = attention, kept, attention.shape
        # Packed models keep `kv_up` unpacked, because its two parts are used separately.
        key_value_AK = attention.kv_up.weight.detach().unflatten(0, (shape.heads, -1))
        key_AQK, self._value_AVK = key_value_AK.split([shape.nope_dim, shape.value_dim], 1)
        self._key_AKQ = key_AQK.mT

    def __call__(
        self, x_RD: Tensor, rows: StepRows, rope: Rotary, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        (nope_BRAQ, rotated_BRAP), latent_BRK, key_BRP = self._attention.project(x_RD[None], rope)
        k_R1C = torch.cat([latent_BRK[0], key_BRP[0]], -1).unsqueeze(1)
        append(self._kept, k_R1C, None, rows.slot_R, rows.position_R)
        query_NAK = row_linear_of_heads(selected(nope_BRAQ[0], logit_row_N), self._key_AKQ)
        mixed_NAK = cached_attention(
            torch.cat([query_NAK, selected(rotated_BRAP[0], logit_row_N)], -1),
            self._kept,
            selected(rows.slot_R, logit_row_N),
            selected(rows.position_R, logit_row_N),
            self._attention.scale,
            phase,
        )
        out_NAV = row_linear_of_heads(mixed_NAK.to(x_RD.dtype), self._value_AVK)
        return self._attention.out(out_NAV.flatten(1))


def layer_attention(attention: object, kept: LayerKV, window: int | None) -> LayerAttention:
    """The engine's attention for a block's attention module and the cache `kept`."""
    match attention:
        case Attention():
            return GroupedLayerAttention(attention, kept, window)
        case LatentAttention():
            return LatentLayerAttention(attention, kept)
        case _:
            raise AssertionError(f"no decoder has a {type(attention).__name__}")
