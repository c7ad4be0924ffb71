"""A block's attention, for rows of any mix of sequences; the modules are the model's own.

R rows, N rows that go on to the FFN, D width, A query heads, G key-value heads, H = A + G, C head
dim; of latent attention: K rank of the latent, S dims that stay, P dims that turn, V value dims.
"""

from typing import Protocol

import torch
from torch import Tensor

from mixtura.engine.steps import Rows
from mixtura.kernels.cached_attention import LayerKV, append, cached_attention
from mixtura.kernels.phase import Phase
from mixtura.kernels.row_linear import row_linear_of_heads
from mixtura.models.attention import Attention, SinkAttention
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.rotary import Rotary, turn


class Attending(Protocol):
    """Attention of one layer, with what the layer keeps."""

    def __call__(
        self, x_RD: Tensor, rows: Rows, rope: Rotary, phase: Phase, asked_N: Tensor | None
    ) -> Tensor:
        """What attention adds to the rows asked for, (N, D); keys and values of all are kept."""
        ...


def taken(of_R: Tensor, asked_N: Tensor | None) -> Tensor:
    """The rows asked for; None asks for all."""
    return of_R if asked_N is None else of_R[asked_N]


class GroupedAttending:
    def __init__(self, attention: Attention, kept: LayerKV, window: int | None) -> None:
        self._attention, self._kept, self._window = attention, kept, window
        shape = attention.shape
        self._scale = shape.scale or shape.head_dim**-0.5
        self._heads = [shape.heads, shape.kv_heads]
        self._sinks_A = attention.sinks.detach() if isinstance(attention, SinkAttention) else None

    def __call__(
        self, x_RD: Tensor, rows: Rows, rope: Rotary, phase: Phase, asked_N: Tensor | None
    ) -> Tensor:
        qk_BRHC, v_BRGC = self._attention.project(x_RD[None])
        q_RAC, k_RGC = turn(qk_BRHC[0], rope.cos_SC, rope.sin_SP).split(self._heads, 1)
        append(self._kept, k_RGC, v_BRGC[0], rows.slot_R, rows.position_R)
        out_NAC = cached_attention(
            taken(q_RAC, asked_N),
            self._kept,
            taken(rows.slot_R, asked_N),
            taken(rows.position_R, asked_N),
            self._scale,
            phase,
            self._window,
            self._sinks_A,
        )
        return self._attention.out(out_NAC.flatten(1).to(x_RD.dtype))


class LatentAttending:
    """In the absorbed form: one head of keys, which are the latents and the turned keys themselves.

    See `LatentAttention.absorbed`.
    """

    def __init__(self, attention: LatentAttention, kept: LayerKV) -> None:
        self._attention, self._kept, shape = attention, kept, attention.shape
        # Of packed models too it is a plain matrix, for it is used part by part.
        drawn_ACK = attention.kv_up.weight.detach().unflatten(0, (shape.heads, -1))
        key_ASK, self._value_AVK = drawn_ACK.split([shape.nope_dim, shape.value_dim], 1)
        self._key_AKS = key_ASK.mT

    def __call__(
        self, x_RD: Tensor, rows: Rows, rope: Rotary, phase: Phase, asked_N: Tensor | None
    ) -> Tensor:
        (nope_BRAS, turned_BRAP), latent_BRK, key_BRP = self._attention.project(x_RD[None], rope)
        k_R1C = torch.cat([latent_BRK[0], key_BRP[0]], -1).unsqueeze(1)
        append(self._kept, k_R1C, None, rows.slot_R, rows.position_R)
        asked_NAK = row_linear_of_heads(taken(nope_BRAS[0], asked_N), self._key_AKS)
        mixed_NAK = cached_attention(
            torch.cat([asked_NAK, taken(turned_BRAP[0], asked_N)], -1),
            self._kept,
            taken(rows.slot_R, asked_N),
            taken(rows.position_R, asked_N),
            self._attention.scale,
            phase,
        )
        out_NAV = row_linear_of_heads(mixed_NAK.to(x_RD.dtype), self._value_AVK)
        return self._attention.out(out_NAV.flatten(1))


def attending_of(attention: object, kept: LayerKV, window: int | None) -> Attending:
    match attention:
        case Attention():
            return GroupedAttending(attention, kept, window)
        case LatentAttention():
            return LatentAttending(attention, kept)
        case _:
            raise AssertionError(f"no decoder has a {type(attention).__name__}")
