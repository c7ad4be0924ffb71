"""Rotary positions (RoPE, arXiv 2104.09864).

B sequences, S positions, H heads, C head dim, P = C/2 pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles of S positions: cosines over the whole head, sines over half of it, fp32."""

    cos_SC: Tensor
    sin_SP: Tensor


def rotary(positions_S: Tensor, head_dim: int, base: float) -> Rotary:
    """The angle of pair i is position * base^(-2i/C) (RoPE, arXiv 2104.09864)."""
    pair = torch.arange(0, head_dim, 2, device=positions_S.device, dtype=torch.float32)
    angle_SP = positions_S[:, None].float() * base ** (-pair / head_dim)
    return Rotary(angle_SP.cos().repeat(1, 2), angle_SP.sin())


def rotate_naive(x_BSHC: Tensor, rope: Rotary) -> Tensor:
    """Turn the pair (i, i + C/2) of each head by its angle, in fp32; keeps the dtype."""
    first, second = x_BSHC.float().chunk(2, -1)
    cos_SP, sin_SP = rope.cos_SC.chunk(2, -1)[0][:, None], rope.sin_SP[:, None]
    turned = (first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP)
    return torch.cat(turned, dim=-1).to(x_BSHC.dtype)


def rotate(x_BSHC: Tensor, rope: Rotary) -> Tensor:
    """As `rotate_naive`, in three passes over memory each way; a turn's gradient turns back."""
    return _Rotate.apply(x_BSHC, rope.cos_SC, rope.sin_SP)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BSHC: Tensor, cos_SC: Tensor, sin_SP: Tensor) -> Tensor:
        ctx.save_for_backward(cos_SC, sin_SP)
        return _turn(x_BSHC, cos_SC, sin_SP)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BSHC: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_SC, sin_SP = ctx.saved_tensors
        return _turn(grad_BSHC, cos_SC, -sin_SP), None, None


def _turn(x_BSHC: Tensor, cos_SC: Tensor, sin_SP: Tensor) -> Tensor:
    wide = x_BSHC.float()
    out = wide * cos_SC[:, None]
    first, second = wide.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    out_first.addcmul_(second, sin_SP[:, None], value=-1)
    out_second.addcmul_(first, sin_SP[:, None])
    return out.to(x_BSHC.dtype)
