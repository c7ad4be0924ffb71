"""The slow twins: the gated delta rule and what stands around it, one token after the other.

S tokens, H value heads, K key dim, V value dim; of the mixer M key heads, C channels of the
convolution (2MK + HV: queries, keys, values), P = C + HV channels of a projected token, T taps,
W = T - 1 tokens before.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.short_conv import short_conv_naive

# Of the length of queries and keys, before it divides them.
LENGTH_EPSILON = 1e-6


def gated_delta_naive(
    q_SHK: Tensor,
    k_SHK: Tensor,
    v_SHV: Tensor,
    decay_SH: Tensor,
    beta_SH: Tensor,
    state_HKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """(out_SHV, state_HKV), by Gated DeltaNet's recurrence (arXiv 2412.06464, eq. 10).

    With S the state, each token: S = decay S; S = S + k beta (v - S^T k)^T; out = S^T q.
    """
    outputs = []
    for q_HK, k_HK, v_HV, decay_H, beta_H in zip(
        q_SHK, k_SHK, v_SHV, decay_SH, beta_SH, strict=True
    ):
        state_HKV = state_HKV * decay_H[:, None, None]
        held_HV = (state_HKV * k_HK[..., None]).sum(1)
        written_HV = beta_H[:, None] * (v_HV - held_HV)
        state_HKV = state_HKV + k_HK[..., None] * written_HV[:, None]
        outputs.append((state_HKV * q_HK[..., None]).sum(1))
    return torch.stack(outputs), state_HKV


class DeltaWeights(NamedTuple):
    """The weights of a mixer between its projections, in fp32 or wider."""

    conv_TC: Tensor
    rate_H: Tensor
    """e^(rate_log): the decay of a step of length 1 is e^(-rate)"""
    step_bias_H: Tensor
    norm_V: Tensor
    epsilon: float
    """of the norm"""
    key_heads: int
    key_dim: int

    @property
    def channels(self) -> int:
        return self.conv_TC.shape[1]

    @property
    def values(self) -> int:
        """The numbers of a token's values: H * V."""
        return len(self.rate_H) * len(self.norm_V)


class Parts(NamedTuple):
    """What the rule reads of some tokens: queries and keys of length 1, queries / sqrt(K)."""

    q_SHK: Tensor
    k_SHK: Tensor
    v_SHV: Tensor
    decay_log_SH: Tensor
    beta_SH: Tensor


def parts_of(mixed_SC: Tensor, gates_SG: Tensor, weights: DeltaWeights) -> Parts:
    """From what the convolution gave, and (beta, step) of each value head before activation.

    The parts are in fp32 or wider. What is given in bf16 is activated in bf16, as by transformers.
    """
    heads = len(weights.rate_H)
    keys = weights.key_heads * weights.key_dim
    q, k, v = wide(F.silu(mixed_SC)).split([keys, keys, weights.values], -1)
    q, k = (_of_length_one(part.unflatten(-1, (weights.key_heads, -1))) for part in (q, k))
    copies = heads // weights.key_heads
    q, k = (part.repeat_interleave(copies, -2) for part in (q * weights.key_dim**-0.5, k))
    beta, step = gates_SG.chunk(2, -1)
    decay_log = -weights.rate_H * F.softplus(wide(step) + weights.step_bias_H)
    return Parts(q, k, v.unflatten(-1, (heads, -1)), decay_log, wide(beta.sigmoid()))


def gated_norm(out_SHV: Tensor, gate_SHV: Tensor, weights: DeltaWeights) -> Tensor:
    """out / rms(out) weight silu(gate), of each head by itself, (S, H * V), in fp32 or wider.

    With a gate in bf16 the normed output and its product with the weight are rounded to bf16, as by
    transformers.
    """
    dtype = gate_SHV.dtype
    normed_SHV = F.rms_norm(wide(out_SHV.to(dtype)), weights.norm_V.shape, None, weights.epsilon)
    scaled_SHV = normed_SHV.to(dtype) * weights.norm_V.to(dtype)
    return (scaled_SHV * F.silu(wide(gate_SHV))).flatten(-2)


def wide(x: Tensor) -> Tensor:
    """In fp32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def delta_mixer_naive(
    projected_SP: Tensor,
    gates_SG: Tensor,
    weights: DeltaWeights,
    tail_WC: Tensor,
    state_HKV: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out_SX, tail_WC, state_HKV) of one sequence, X = HV: all between the projections.

    `projected_SP` has queries, keys, values and the output's gate, all heads of each side by side.
    """
    input_SC, gate_SX = projected_SP.split([weights.channels, weights.values], -1)
    mixed_SC, tail_WC = short_conv_naive(input_SC, weights.conv_TC.T, None, tail_WC)
    parts = parts_of(mixed_SC, gates_SG, weights)
    rule = (parts.q_SHK, parts.k_SHK, parts.v_SHV, parts.decay_log_SH.exp(), parts.beta_SH)
    out_SHV, state_HKV = gated_delta_naive(*rule, state_HKV)
    gate_SHV = gate_SX.unflatten(-1, out_SHV.shape[1:])
    return gated_norm(out_SHV, gate_SHV, weights), tail_WC, state_HKV


def _of_length_one(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + LENGTH_EPSILON).rsqrt()
