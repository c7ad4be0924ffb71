"""Activations, forward and backward. N rows, F hidden width, H = 2F where gated."""

import math
from typing import get_args

import pytest
import torch

from mixtura.kernels.activation import activate, activate_backward
from mixtura.shapes import Activation

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


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
