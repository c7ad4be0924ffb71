"""A causal convolution over the last K tokens of a sequence, channel by channel.

`naive.py` says what the others compute.
"""

from mixtura.kernels.short_conv.naive import short_conv_naive
from mixtura.kernels.short_conv.torch import Convolved, Taps, short_conv, short_conv_rows

__all__ = ["Convolved", "Taps", "short_conv", "short_conv_naive", "short_conv_rows"]
