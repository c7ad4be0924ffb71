"""Rotary position embedding (RoPE, arXiv 2104.09864).

B sequences, S positions, H heads, A head dim, C rotated dims of a head, P = C/2 pairs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mixtura.shapes.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of the angles of S positions; the cosine of pair p is in dims p and P + p.

    They are computed in fp32. If `to` rounds them to bf16, bf16 queries and keys rotate in bf16.
    """

    cos_SC: Tensor
    sin_SP: Tensor

    def to(self, dtype: torch.dtype) -> "Rotary":
        return Rotary(self.cos_SC.to(dtype), self.sin_SP.to(dtype))


def rotary(
    positions_S: Tensor, head_dim: int, base: float, scaling: RopeScaling | None = None
) -> Rotary:
    """The angle of pair i is position * frequency_i; see `frequencies`.

    LongRoPE uses its long factors if the last position is past the original context.
    """
    beyond = (
        isinstance(scaling, LongRopeScaling)
        and len(positions_S) > 0
        and int(positions_S[-1]) >= scaling.original_context
    )
    return angles(positions_S, head_dim, base, scaling, beyond=beyond)


def local_rotary(positions_S: Tensor, rope_dim: int, base: float) -> Rotary:
    """The angles of layers with their own base; angles of no dims if the base is 0."""
    return angles(positions_S, rope_dim, base) if base else angles(positions_S, 0, 1.0)


def angles(
    positions_S: Tensor,
    head_dim: int,
    base: float,
    scaling: RopeScaling | None = None,
    *,
    beyond: bool = False,
) -> Rotary:
    """As `rotary`, but `beyond` states whether the sequence is past LongRoPE's original context."""
    frequency_P, amplitude = frequencies(head_dim, base, scaling, beyond=beyond)
    angle_SP = positions_S[:, None].float() * frequency_P.to(positions_S.device)
    return Rotary(angle_SP.cos().repeat(1, 2) * amplitude, angle_SP.sin() * amplitude)


def frequencies(
    head_dim: int, base: float, scaling: RopeScaling | None = None, *, beyond: bool = False
) -> tuple[Tensor, float]:
    """(frequency_P, amplitude): frequency_i is base^(-2i/C) radians a position, before scaling.

    `beyond` selects LongRoPE's long factors, for a sequence past the original context. `amplitude`
    multiplies cosines and sines.
    """
    pair_P = torch.arange(0, head_dim, 2, dtype=torch.float32)
    # The order of operations is that of transformers. With another order the last bit of a
    # frequency changes, and at some positions a cosine in bf16.
    wave_P = base ** (pair_P / head_dim)
    plain_P = 1 / wave_P
    match scaling:
        case None:
            return plain_P, 1.0
        case LinearScaling():
            return plain_P / scaling.factor, 1.0
        case Llama3Scaling():
            rotations_P = scaling.original_context * plain_P / (2 * math.pi)
            span = scaling.high_factor - scaling.low_factor
            kept_P = ((rotations_P - scaling.low_factor) / span).clamp(0, 1)
            return plain_P * (kept_P + (1 - kept_P) / scaling.factor), 1.0
        case YarnScaling():
            kept_P = _kept_by_yarn(head_dim, base, scaling)
            slowed_P = 1 / (scaling.factor * wave_P)
            return slowed_P * (1 - kept_P) + plain_P * kept_P, scaling.amplitude
        case LongRopeScaling():
            factor_P = torch.tensor(scaling.long if beyond else scaling.short)
            amplitude = scaling.long_amplitude if beyond else scaling.short_amplitude
            return 1 / (factor_P * wave_P), amplitude


def _kept_by_yarn(head_dim: int, base: float, scaling: YarnScaling) -> Tensor:
    """How much of its frequency a pair keeps; the rest is divided by the scaling factor.

    1 for pairs that rotate often within the original context, 0 for pairs that rotate rarely, and a
    ramp between.
    """

    def pair_that_rotates(times: float) -> float:
        wave = scaling.original_context / (times * 2 * math.pi)
        return head_dim * math.log(wave) / (2 * math.log(base))

    low, high = pair_that_rotates(scaling.beta_fast), pair_that_rotates(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # If both ends are equal, a tiny width makes the ramp a step and avoids a division by 0.
    width = high - low if high != low else 1e-3
    return 1 - ((torch.arange(head_dim // 2) - low) / width).clamp(0, 1)


def rotate_naive(x_BSHA: Tensor, rope: Rotary) -> Tensor:
    """Rotate the pair (i, i + C/2) of each head by its angle, in fp32; keeps the dtype of x.

    Only the first C dims of a head are rotated, and the others stay as they are.
    """
    rotated_dims, rest = x_BSHA.float().tensor_split([rope.cos_SC.shape[-1]], -1)
    first, second = rotated_dims.chunk(2, -1)
    cos_SP, sin_SP = rope.cos_SC.chunk(2, -1)[0][:, None], rope.sin_SP[:, None]
    rotated = (first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP)
    return torch.cat([*rotated, rest], dim=-1).to(x_BSHA.dtype)


def rotate(x_BSHA: Tensor, rope: Rotary) -> Tensor:
    """As `rotate_naive`, in three passes over memory, forward and backward.

    The backward pass rotates the gradient by the opposite angle.
    """
    return _Rotate.apply(x_BSHA, rope.cos_SC, rope.sin_SP)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BSHA: Tensor, cos_SC: Tensor, sin_SP: Tensor) -> Tensor:
        ctx.save_for_backward(cos_SC, sin_SP)
        return rotate_without_grad(x_BSHA, cos_SC, sin_SP)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BSHA: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_SC, sin_SP = ctx.saved_tensors
        return rotate_without_grad(grad_BSHA, cos_SC, -sin_SP), None, None


def rotate_without_grad(x_BSHA: Tensor, cos_SC: Tensor, sin_SP: Tensor) -> Tensor:
    """The result of `rotate`, without a backward pass."""
    count = cos_SC.shape[-1]
    if count == x_BSHA.shape[-1]:
        return _rotate_all(x_BSHA, cos_SC, sin_SP)
    return torch.cat([_rotate_all(x_BSHA[..., :count], cos_SC, sin_SP), x_BSHA[..., count:]], -1)


def _rotate_all(x_BSHC: Tensor, cos_SC: Tensor, sin_SP: Tensor) -> Tensor:
    wide = x_BSHC.to(torch.promote_types(x_BSHC.dtype, cos_SC.dtype))
    sin_S1P = sin_SP[:, None]
    out = wide * cos_SC[:, None]
    first, second = wide.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    if out.itemsize < 4:
        # Each product is rounded before the sum, as in transformers.
        out_first.sub_(second * sin_S1P)
        out_second.add_(first * sin_S1P)
    else:
        out_first.addcmul_(second, sin_S1P, value=-1)
        out_second.addcmul_(first, sin_S1P)
    return out.to(x_BSHC.dtype)
