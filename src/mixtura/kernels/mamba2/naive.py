"""The slow twins: the recurrence of Mamba-2 and what stands around it, one token after the other.

S tokens, H heads, P channels of a head, X = HP, G groups of heads, N state dims; C channels of the
convolution (X + 2GN: inputs, b, c), J = X + C numbers of a projected token, T taps, W = T - 1
tokens before.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.short_conv import short_conv_naive


class MambaParts(NamedTuple):
    """What the recurrence reads of some tokens."""

    x_SHP: Tensor
    step_SH: Tensor
    decay_log_SH: Tensor
    b_SGN: Tensor
    c_SGN: Tensor


def mamba2_naive(parts: MambaParts, state_HNP: Tensor) -> tuple[Tensor, Tensor]:
    """(out_SHP, state_HNP), by the recurrence of Mamba-2 (arXiv 2405.21060, eq. 2 and section 7).

    With S the state of a head, each token: S = decay S + b (step x)^T; out = S^T c.
    """
    x_SHP, step_SH, decay_log_SH, *groups = parts
    copies = x_SHP.shape[1] // parts.b_SGN.shape[1]
    b_SHN, c_SHN = (part.repeat_interleave(copies, 1) for part in groups)
    outputs = []
    for x_HP, step_H, decay_H, b_HN, c_HN in zip(
        x_SHP, step_SH, decay_log_SH.exp(), b_SHN, c_SHN, strict=True
    ):
        written_HP = step_H[:, None] * x_HP
        state_HNP = state_HNP * decay_H[:, None, None] + b_HN[..., None] * written_HP[:, None]
        outputs.append((state_HNP * c_HN[..., None]).sum(1))
    return torch.stack(outputs), state_HNP


class MambaWeights(NamedTuple):
    """The weights of a mixer between its projections, in fp32 or wider."""

    conv_TC: Tensor
    conv_bias_C: Tensor
    rate_H: Tensor
    """e^(rate_log): the decay of a step of length 1 is e^(-rate)"""
    step_bias_H: Tensor
    skip_H: Tensor
    norm_X: Tensor
    epsilon: float
    """of the norm"""
    least_step: float
    most_step: float
    groups: int

    @property
    def inner(self) -> int:
        """X, the numbers of a token's input."""
        return len(self.norm_X)

    @property
    def head_dim(self) -> int:
        return self.inner // len(self.rate_H)

    @property
    def channels(self) -> int:
        return self.conv_TC.shape[1]

    @property
    def state_dim(self) -> int:
        return (self.channels - self.inner) // (2 * self.groups)


def mamba_parts(mixed_SC: Tensor, step_SH: Tensor, weights: MambaWeights) -> MambaParts:
    """From what the convolution gave, and the step of each head before bias and softplus."""
    keys = weights.groups * weights.state_dim
    x, b, c = F.silu(mixed_SC).split([weights.inner, keys, keys], -1)
    b, c = (part.unflatten(-1, (weights.groups, -1)) for part in (b, c))
    step_SH = F.softplus(step_SH + weights.step_bias_H)
    step_SH = step_SH.clamp(weights.least_step, weights.most_step)
    x_SHP = x.unflatten(-1, (-1, weights.head_dim))
    return MambaParts(x_SHP, step_SH, -weights.rate_H * step_SH, b, c)


def gated_group_norm(out_SX: Tensor, gate_SX: Tensor, weights: MambaWeights) -> Tensor:
    """With y = out silu(gate): y / rms(y) weight; the rms is that of each group by itself."""
    gated_SGY = (out_SX * F.silu(gate_SX)).unflatten(-1, (weights.groups, -1))
    normed_SGY = F.rms_norm(gated_SGY, gated_SGY.shape[-1:], None, weights.epsilon)
    return normed_SGY.flatten(-2) * weights.norm_X


def mamba_mixer_naive(
    projected_SJ: Tensor,
    step_SH: Tensor,
    weights: MambaWeights,
    tail_WC: Tensor,
    state_HNP: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out_SX, tail_WC, state_HNP) of one sequence: all between the projections.

    `projected_SJ` has the output's gate, the inputs, b and c, all heads of each side by side.
    """
    gate_SX, input_SC = projected_SJ.split([weights.inner, weights.channels], -1)
    conv = (weights.conv_TC.T, weights.conv_bias_C)
    mixed_SC, tail_WC = short_conv_naive(input_SC, *conv, tail_WC)
    parts = mamba_parts(mixed_SC, step_SH, weights)
    out_SHP, state_HNP = mamba2_naive(parts, state_HNP)
    out_SX = (out_SHP + weights.skip_H[:, None] * parts.x_SHP).flatten(1)
    return gated_group_norm(out_SX, gate_SX, weights), tail_WC, state_HNP
