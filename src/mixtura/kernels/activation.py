"""Activations of expert and dense FFNs, with their gradients.

N rows, F hidden width, H inputs of the activation: 2F if it is gated (gate, then up), else F.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.shapes.activations import ACTIVATIONS, Activation

# Constants of gpt-oss: the factor inside the gate's sigmoid, and the bound to which gate and up are
# clipped.
STEEPNESS, LIMIT = 1.702, 7.0

Forward = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ActivationFunction(NamedTuple):
    """The function between the two matrix products of an FFN."""

    forward: Forward
    """computes a_NF from h_NH"""
    backward: Backward
    """computes (a_NF, grad_h_NH) from h_NH and the gradient of a"""


def activate(h_NH: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up for a gated activation, else act(h). The gradient is computed by autograd.

    GELU is exact (by erf), except in `geglu_tanh`, which approximates it by tanh. `swiglu_clamped`
    is gpt-oss's activation: gate is clipped to at most 7 and up to -7..7, and the result is
    `gate * sigmoid(1.702 gate) * (up + 1)`.
    """
    return _FUNCTIONS[activation].forward(h_NH)


def activate_backward(
    h_NH: Tensor, grad_a_NF: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """(a_NF, grad_h_NH) from h and the gradient of a.

    a is computed again, because the forward pass does not keep it.
    """
    return _FUNCTIONS[activation].backward(h_NH, grad_a_NF)


def register_activation(
    name: str, forward: Forward, *, gated: bool, backward: Backward | None = None
) -> None:
    """Add an activation under a name that configs can use.

    `forward` computes a_NF from h_NH; if `gated`, the last dim of h_NH is the gate and then up. For
    `backward` see `ActivationFunction`; if it is None, autograd computes the gradient. The compiled
    kernels support only Mixtura's own activations, so packed experts with any other activation are
    computed by PyTorch from unpacked weights. Raises ValueError for a name in use.
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
    """The activation act(gate) * up."""

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
    """The activation act(h)."""
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
