"""Activations, forward and backward. N rows, F hidden width, H = 2F where gated."""

import math

import pytest
import torch

from mixtura.kernels.activation import activate, activate_backward, register_activation
from mixtura.moe import MoE, MoEConfig
from mixtura.shapes import Activation
from mixtura.shapes.activations import ACTIVATIONS as NAMES
from mixtura.shapes.activations import OWN

ACTIVATIONS: tuple[Activation, ...] = OWN


def test_by_hand() -> None:
    # Gate 1 comes first, then up 3. silu(1) = 1 / (1 + 1/e); gelu(1) = (1 + erf(1/sqrt 2)) / 2.
    h_NH = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    silu, gelu = 1 / (1 + math.exp(-1)), (1 + math.erf(2**-0.5)) / 2
    assert activate(h_NH, "swiglu").item() == pytest.approx(3 * silu, rel=1e-12)
    assert activate(h_NH, "geglu").item() == pytest.approx(3 * gelu, rel=1e-12)
    assert activate(h_NH, "gelu")[0, 0].item() == pytest.approx(gelu, rel=1e-12)
    assert activate(torch.tensor([[-1.0, 0.0, 3.0]]), "relu").tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_backward_equals_autograd(activation: Activation, contiguous: bool) -> None:
    torch.manual_seed(0)
    h_NH = torch.randn(14, 3, dtype=torch.float64).T
    # A ReLU's derivative at 0 is 0 in autograd, and so here.
    h_NH = (h_NH.contiguous() if contiguous else h_NH).index_fill(1, torch.tensor([4]), 0.0)
    h_NH = h_NH.requires_grad_()
    a_NF = activate(h_NH, activation)
    grad_a_NF = torch.randn_like(a_NF)
    (expected,) = torch.autograd.grad(a_NF, h_NH, grad_a_NF)
    again_NF, grad_h_NH = activate_backward(h_NH.detach(), grad_a_NF, activation)
    torch.testing.assert_close(again_NF, a_NF.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_h_NH, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_rows(activation: Activation) -> None:
    a_NF, grad_h_NH = activate_backward(
        torch.empty(0, 6), activate(torch.empty(0, 6), activation), activation
    )
    assert a_NF.shape[0] == grad_h_NH.shape[0] == 0
    assert grad_h_NH.shape[1] == 6


def test_register_activation_trains_and_packs_by_its_name() -> None:
    # Squared ReLU has no backward of its own here: autograd makes one.
    register_activation("relu_squared", lambda h: h.relu().square(), gated=False)
    try:
        torch.manual_seed(0)
        tree = {"num_experts": 3, "top_k": 2, "expert_width": 32, "activation": "relu_squared"}
        layer = MoE(32, MoEConfig.parse(tree)).double()
        x_TD = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: layer.eval()(x).hidden, (x_TD,))
        naive = MoE(32, MoEConfig.parse({**tree, "backend": "naive"})).double()
        naive.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x_TD).hidden, naive.eval()(x_TD).hidden)
    finally:
        NAMES.remove("relu_squared")
