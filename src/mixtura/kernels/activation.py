"""Activations of expert and dense FFNs, forward and backward.

N rows, F hidden width, H = 2F rows of gate then up where gated, F where not.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.shapes.activations import ACTIVATIONS, Activation

# gpt-oss's constants: the steepness of its gate, and the bound to which gate and up are clipped.
STEEPNESS, LIMIT = 1.702, 7.0

Forward = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ActivationFunction(NamedTuple):
    """The function between an FFN's two products."""

    forward: Forward
    """a_NF from h_NH"""
    backward: Backward
    """(a_NF, grad_h_NH) from h_NH and the gradient of a"""


def activate(h_NH: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, or act(h); by autograd.

    GELU is exact, by erf, and `geglu_tanh` is its approximation by tanh. `swiglu_clamped` is
    gpt-oss's: gate at most 7, up in -7..7, gate sigmoid(1.702 gate) (up + 1).
    """
    return _FUNCTIONS[activation].forward(h_NH)


def activate_backward(
    h_NH: Tensor, grad_a_NF: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """(a_NF, grad_h_NH) from h and the gradient of a; recomputes a, which was not kept."""
    return _FUNCTIONS[activation].backward(h_NH, grad_a_NF)


def register_activation(
    name: str, forward: Forward, *, gated: bool, backward: Backward | None = None
) -> None:
    """Let configs name an activation of another package.

    `forward` gives a_NF from h_NH, whose last dim is gate and then up if `gated`. Without a
    `backward` (see `ActivationFunction`) autograd computes it. The compiled kernels have only
    Mixtura's own activations: PyTorch computes packed experts with another one from unpacked
    weights. Raises ValueError for a name in use.
    """
    ACTIVATIONS.add(name, gated)

    def by_autograd(h_NH: Tensor, grad_a_NF: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            h_NH = h_NH.detach().requires_grad_()
            a_NF = forward(h_NH)
        (grad_h_NH,) = torch.autograd.grad(a_NF, h_NH, grad_a_NF)
        return a_NF.detach(), grad_h_NH

    _FUNCTIONS[name] = ActivationFunction(forward, backward or by_autograd)


def _gated(act: Forward, act_backward: Callable[[Tensor, Tensor], Tensor]) -> ActivationFunction:
    """act(gate) * up."""

    def forward(h_NH: Tensor) -> Tensor:
        gate_NF, up_NF = h_NH.chunk(2, -1)
        return act(gate_NF) * up_NF

    def backward(h_NH: Tensor, grad_a_NF: Tensor) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF = h_NH.chunk(2, -1)
        act_NF = act(gate_NF)
        grad_h_NH = torch.empty_like(h_NH)
        grad_gate_NF, grad_up_NF = grad_h_NH.chunk(2, -1)
        torch.mul(grad_a_NF, act_NF, out=grad_up_NF)
        grad_gate_NF.copy_(act_backward(grad_a_NF * up_NF, gate_NF))
        return act_NF * up_NF, grad_h_NH

    return ActivationFunction(forward, backward)


def _plain(act: Forward, act_backward: Callable[[Tensor, Tensor], Tensor]) -> ActivationFunction:
    """act(h)."""
    return ActivationFunction(act, lambda h_NH, grad: (act(h_NH), act_backward(grad, h_NH)))


def _clamped(h_NH: Tensor) -> Tensor:
    gate_NF, up_NF = h_NH.chunk(2, -1)
    gate_NF = gate_NF.clamp(max=LIMIT)
    return gate_NF * (STEEPNESS * gate_NF).sigmoid() * (up_NF.clamp(-LIMIT, LIMIT) + 1)


def _clamped_backward(h_NH: Tensor, grad_a_NF: Tensor) -> tuple[Tensor, Tensor]:
    gate_NF, up_NF = h_NH.chunk(2, -1)
    clipped_NF, up_one_NF = gate_NF.clamp(max=LIMIT), up_NF.clamp(-LIMIT, LIMIT) + 1
    open_NF = (STEEPNESS * clipped_NF).sigmoid()
    act_NF = clipped_NF * open_NF
    slope_NF = open_NF + STEEPNESS * act_NF * (1 - open_NF)
    grad_gate_NF = grad_a_NF * up_one_NF * slope_NF * (gate_NF <= LIMIT)
    grad_up_NF = grad_a_NF * act_NF * (up_NF.abs() <= LIMIT)
    return act_NF * up_one_NF, torch.cat([grad_gate_NF, grad_up_NF], -1)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, x, 0)


_GELU = (F.gelu, torch.ops.aten.gelu_backward)
_FUNCTIONS: dict[str, ActivationFunction] = {
    "swiglu": _gated(F.silu, torch.ops.aten.silu_backward),
    "swiglu_clamped": ActivationFunction(_clamped, _clamped_backward),
    "geglu": _gated(*_GELU),
    "geglu_tanh": _gated(_gelu_tanh, _gelu_tanh_backward),
    "gelu": _plain(*_GELU),
    "relu": _plain(F.relu, _relu_backward),
}
