"""Activations of expert and dense FFNs, forward and backward.

N rows, F hidden width, H = 2F rows of gate then up where gated, F where not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.shapes import Activation
from mixtura.shapes.moe import GATED

# Of gpt-oss: the steepness of its gate, and the size that gate and up are clipped to.
STEEPNESS, LIMIT = 1.702, 7.0


def activate(h_NH: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, or act(h); plain autograd.

    GELU is the exact one, by erf, and `geglu_tanh` has its approximation by tanh. `swiglu_clamped`
    is gpt-oss's: gate at most 7, up in -7..7, gate sigmoid(1.702 gate) (up + 1).
    """
    if activation == "swiglu_clamped":
        gate_NF, up_NF = h_NH.chunk(2, -1)
        gate_NF = gate_NF.clamp(max=LIMIT)
        return gate_NF * (STEEPNESS * gate_NF).sigmoid() * (up_NF.clamp(-LIMIT, LIMIT) + 1)
    if activation in GATED:
        gate_NF, up_NF = h_NH.chunk(2, -1)
        return _act(gate_NF, activation) * up_NF
    return _act(h_NH, activation)


def activate_backward(
    h_NH: Tensor, grad_a_NF: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """(a_NF, grad_h_NH) from h and the gradient of a: recomputes a, which was not kept."""
    if activation == "swiglu_clamped":
        return _clamped_backward(h_NH, grad_a_NF)
    if activation not in GATED:
        return _act(h_NH, activation), _act_backward(grad_a_NF, h_NH, activation)
    gate_NF, up_NF = h_NH.chunk(2, -1)
    act_NF = _act(gate_NF, activation)
    grad_h_NH = torch.empty_like(h_NH)
    grad_gate_NF, grad_up_NF = grad_h_NH.chunk(2, -1)
    torch.mul(grad_a_NF, act_NF, out=grad_up_NF)
    grad_gate_NF.copy_(_act_backward(grad_a_NF * up_NF, gate_NF, activation))
    return act_NF * up_NF, grad_h_NH


def _clamped_backward(h_NH: Tensor, grad_a_NF: Tensor) -> tuple[Tensor, Tensor]:
    gate_NF, up_NF = h_NH.chunk(2, -1)
    clipped_NF, up_one_NF = gate_NF.clamp(max=LIMIT), up_NF.clamp(-LIMIT, LIMIT) + 1
    open_NF = (STEEPNESS * clipped_NF).sigmoid()
    act_NF = clipped_NF * open_NF
    slope_NF = open_NF + STEEPNESS * act_NF * (1 - open_NF)
    grad_gate_NF = grad_a_NF * up_one_NF * slope_NF * (gate_NF <= LIMIT)
    grad_up_NF = grad_a_NF * act_NF * (up_NF.abs() <= LIMIT)
    return act_NF * up_one_NF, torch.cat([grad_gate_NF, grad_up_NF], -1)


def _act(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "swiglu":
            return F.silu(x)
        case "geglu" | "gelu":
            return F.gelu(x)
        case "geglu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "swiglu_clamped":
            raise AssertionError("its two halves do not part")


def _act_backward(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "swiglu":
            return torch.ops.aten.silu_backward(grad, x)
        case "geglu" | "gelu":
            return torch.ops.aten.gelu_backward(grad, x)
        case "geglu_tanh":
            return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        case "relu":
            return torch.ops.aten.threshold_backward(grad, x, 0)
        case "swiglu_clamped":
            raise AssertionError("its two halves do not part")
