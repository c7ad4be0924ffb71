"""The gated short convolution of LFM2 (arXiv 2511.23404).

B sequences, S new tokens, D width, K taps.
"""

import torch
from torch import Tensor, nn

from mixtura.kernels.short_conv import Convolved, short_conv
from mixtura.models.recurrence import Recurrence, States
from mixtura.shapes import ShortConvShape


class CausalConv(nn.Module):
    """A convolution over the last K tokens, channel by channel."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.normal_(self.weight, std=kernel**-0.5)

    def forward(
        self, x_BSD: Tensor, valid_BS: Tensor | None, before_BWD: Tensor | None
    ) -> Convolved:
        """See `short_conv`."""
        return short_conv(x_BSD, self.weight, self.bias, before_BWD, valid_BS)


class ShortConv(Recurrence):
    """out(c * conv(b * v)), where (b, c, v) are three projections of each token."""

    def __init__(self, width: int, shape: ShortConvShape) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 3 * width, bias=shape.bias)
        self.conv = CausalConv(width, shape.kernel, shape.bias)
        self.out = nn.Linear(width, width, bias=shape.bias)
        for linear in (self.projection, self.out):
            nn.init.normal_(linear.weight, std=width**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, valid_BS: Tensor | None, states: States | None) -> Tensor:
        input_BSD, gate_BSD = self.project(x_BSD)
        before_BWD = None if states is None else states[0]
        mixed_BSD, after_BWD = self.conv(input_BSD, valid_BS, before_BWD)
        if states is not None:
            states[0].copy_(after_BWD.detach())
        return self.out(gate_BSD * mixed_BSD)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(input, gate), each as wide as x: what the convolution reads, and what scales it."""
        before, gate, value = self.projection(x).chunk(3, -1)
        return before * value, gate
