"""The experts of one layer, and dense FFNs of the same layout.

T tokens, D width, E experts, F expert width, H rows of w_in: 2F (gate, then up) or F.
"""

import torch
from torch import Tensor, nn

from mixtura.kernels.activation import activate
from mixtura.kernels.experts_ffn import Biases
from mixtura.moe.backends import BACKENDS, BackendName, ExpertBank
from mixtura.moe.routing import Routing
from mixtura.shapes import Activation
from mixtura.shapes.activations import is_gated


class Experts(nn.Module):
    """E FFNs on one device; see `RoutedExperts`. No other backend replaces the named one."""

    def __init__(
        self,
        width: int,
        num_experts: int,
        expert_width: int,
        activation: Activation,
        backend: BackendName = "auto",
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.backend = backend
        self._compute = BACKENDS.get(backend)
        rows = expert_width * (2 if is_gated(activation) else 1)
        self.w_in = nn.Parameter(torch.empty(num_experts, rows, width))
        self.w_out = nn.Parameter(torch.empty(num_experts, width, expert_width))
        self.b_in = nn.Parameter(torch.zeros(num_experts, rows)) if bias else None
        self.b_out = nn.Parameter(torch.zeros(num_experts, width)) if bias else None
        nn.init.normal_(self.w_in, std=width**-0.5)
        nn.init.normal_(self.w_out, std=expert_width**-0.5)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """out_TD, in the dtype of the products."""
        dtype = compute_dtype(x_TD)
        biases = None
        if self.b_in is not None and self.b_out is not None:
            biases = Biases(self.b_in.to(dtype), self.b_out.to(dtype))
        bank = ExpertBank(self.w_in.to(dtype), self.w_out.to(dtype), self.activation, biases)
        return self._compute(x_TD.to(dtype), routing, bank)

    def products_for(self, dtype: torch.dtype, device: torch.device) -> str:
        """The name of the products that the backend uses. Raises ConfigError where it has none."""
        return self._compute.products(dtype, device, *self.w_out.shape[1:])


class DenseFFN(nn.Module):
    """One FFN with the experts' layout of weights: for dense layers, shared experts, residuals."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        rows = hidden * (2 if is_gated(activation) else 1)
        self.w_in = nn.Parameter(torch.empty(rows, width))
        self.w_out = nn.Parameter(torch.empty(width, hidden))
        nn.init.normal_(self.w_in, std=width**-0.5)
        nn.init.normal_(self.w_out, std=hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        h = nn.functional.linear(x, self.w_in)
        return nn.functional.linear(activate(h, self.activation), self.w_out)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is enabled, else the input's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
