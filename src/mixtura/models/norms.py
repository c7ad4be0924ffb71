"""The norm layers of a decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.shapes import NormShape


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight. In bf16 and fp16 the quotient is rounded first, as in transformers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.itemsize >= 4 or x.dtype != self.weight.dtype:
            return super().forward(x)
        normed = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return self.weight * normed.to(x.dtype)


class UnitOffsetRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in fp32 (Gemma); the result has the dtype of x."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.weight.float()
        return F.rms_norm(x.float(), scale.shape, scale, self.epsilon).to(x.dtype)


def build_norm(width: int, shape: NormShape) -> nn.Module:
    """The norm over the last dim that `shape` describes."""
    if shape.unit_offset:
        return UnitOffsetRMSNorm(width, shape.epsilon)
    if shape.kind == "layer":
        return nn.LayerNorm(width, shape.epsilon, bias=shape.bias)
    return RMSNorm(width, shape.epsilon)
