"""The experts of an MoE layer, and a dense FFN whose weights have the layout of one expert.

T tokens, D width, E experts, F expert width, H rows of w_in: 2F if the activation is gated (F rows
of W_gate, then F rows of W_up), else F.
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
    """The FFNs of a layer's E experts on one device; an implementation of `RoutedExperts`.

    `backend` is a name in `BACKENDS`. If that backend cannot compute the input, it raises an error;
    no other backend replaces it.
    """

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
        """out_TD: each token's weighted sum of expert outputs, in `compute_dtype(x_TD)`."""
        dtype = compute_dtype(x_TD)
        biases = None
        if self.b_in is not None and self.b_out is not None:
            biases = Biases(self.b_in.to(dtype), self.b_out.to(dtype))
        bank = ExpertBank(self.w_in.to(dtype), self.w_out.to(dtype), self.activation, biases)
        return self._compute(x_TD.to(dtype), routing, bank)

    def products_for(self, dtype: torch.dtype, device: torch.device) -> str:
        """The name of the kind of matrix products that the backend uses.

        Raises ConfigError if the backend does not support this dtype or device.
        """
        return self._compute.products(dtype, device, *self.w_out.shape[1:])


class DenseFFN(nn.Module):
    """One FFN, used as a dense layer, as the shared expert or as the residual branch."""

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
    """The dtype of matrix products: x's, or autocast's if that is enabled and x is not float64."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
