"""The experts of one layer: stacked weights, and the backend that multiplies with them.

M rows sorted by expert, D width, E experts, F expert width, H rows of w_in: 2F (gate, then up)
or F.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.kernels.activation import activate
from mixtura.kernels.experts_ffn import (
    Biases,
    Products,
    experts_ffn,
    experts_ffn_naive,
    grouped_mm_takes,
    ragged_takes,
)
from mixtura.kernels.permute import COMPACT, Padding
from mixtura.shapes import Activation
from mixtura.shapes.moe import GATED

Backend = Literal[
    "auto", "naive", "torch", "torch_grouped", "torch_ragged", "torch_batched", "torch_loop"
]

# Rows to which segments are rounded up. bf16: oneDNN makes a kernel for each new count of rows,
# which costs several times the product.
ROW_MULTIPLE = {torch.bfloat16: 32, torch.float16: 32}
EVEN_WITHIN = 1.5


class Experts(nn.Module):
    """E FFNs. `backend` is used as named, or refused; `auto` is `torch`."""

    def __init__(
        self,
        width: int,
        num_experts: int,
        expert_width: int,
        activation: Activation,
        backend: Backend = "auto",
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.backend: Backend = backend
        rows = expert_width * (2 if activation in GATED else 1)
        self.w_in = nn.Parameter(torch.empty(num_experts, rows, width))
        self.w_out = nn.Parameter(torch.empty(num_experts, width, expert_width))
        self.b_in = nn.Parameter(torch.zeros(num_experts, rows)) if bias else None
        self.b_out = nn.Parameter(torch.zeros(num_experts, width)) if bias else None
        nn.init.normal_(self.w_in, std=width**-0.5)
        nn.init.normal_(self.w_out, std=expert_width**-0.5)

    def forward(self, x_MD: Tensor, segment_E: Tensor) -> Tensor:
        """y_MD for rows sorted by expert, `segment_E` of each; rows past their sum give 0."""
        dtype = compute_dtype(x_MD)
        x_MD, w_in, w_out = x_MD.to(dtype), self.w_in.to(dtype), self.w_out.to(dtype)
        biases = None
        if self.b_in is not None and self.b_out is not None:
            biases = Biases(self.b_in.to(dtype), self.b_out.to(dtype))
        if self.backend == "naive":
            return experts_ffn_naive(x_MD, segment_E, w_in, w_out, self.activation, biases)
        products = self.products_for(dtype, x_MD.device)
        return experts_ffn(x_MD, segment_E, w_in, w_out, self.activation, products, biases)

    def padding_for(self, x_TD: Tensor) -> Padding:
        """What `forward` wants of the segments that rows of `x_TD` are sorted into."""
        dtype = compute_dtype(x_TD)
        if self.backend == "naive":
            return COMPACT
        return padding_of(self.products_for(dtype, x_TD.device), dtype)

    def products_for(self, dtype: torch.dtype, device: torch.device) -> Products:
        """Which products the backend takes: the best ones where it is `torch`.

        Raises ConfigError where the named backend cannot take this dtype or width.
        """
        _, width, expert_width = self.w_out.shape
        match self.backend:
            case "torch_loop":
                return "loop"
            case "torch_batched":
                return "batched"
            case "torch_grouped":
                if not grouped_mm_takes(dtype, width, expert_width):
                    raise ConfigError(
                        f"backend=torch_grouped takes float32, bfloat16 or float16 and widths "
                        f"whose rows are multiples of 16 bytes, not {dtype} with width={width} and "
                        f"expert_width={expert_width}; choose backend=torch"
                    )
                return "grouped"
            case "torch_ragged":
                if not ragged_takes(dtype, device):
                    raise ConfigError(
                        f"backend=torch_ragged takes float32 or float64 on a CPU, from a torch "
                        f"that carries MKL, not {dtype} on {device.type}; choose backend=torch"
                    )
                return "ragged"
        return best_products(dtype, device, width, expert_width)


class DenseFFN(nn.Module):
    """One FFN with the experts' layout of weights: dense layers, shared experts, residuals."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        rows = hidden * (2 if activation in GATED else 1)
        self.w_in = nn.Parameter(torch.empty(rows, width))
        self.w_out = nn.Parameter(torch.empty(width, hidden))
        nn.init.normal_(self.w_in, std=width**-0.5)
        nn.init.normal_(self.w_out, std=hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        h = nn.functional.linear(x, self.w_in)
        return nn.functional.linear(activate(h, self.activation), self.w_out)


def best_products(dtype: torch.dtype, device: torch.device, *widths: int) -> Products:
    """The rule that docs/decisions/0004 derives, for rows of `widths`."""
    if device.type == "cpu" and dtype in ROW_MULTIPLE:
        return "batched"
    return unpadded_products(dtype, device, *widths)


def unpadded_products(dtype: torch.dtype, device: torch.device, *widths: int) -> Products:
    """The part of that rule for segments that stay as they are."""
    if ragged_takes(dtype, device):
        return "ragged"
    return "grouped" if grouped_mm_takes(dtype, *widths) else "loop"


def padding_of(products: Products, dtype: torch.dtype) -> Padding:
    """Segments are padded for batched products alone."""
    return Padding(ROW_MULTIPLE.get(dtype, 8), EVEN_WITHIN) if products == "batched" else COMPACT


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products run in: autocast's where it is on, else the input's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
