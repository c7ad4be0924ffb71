"""gpt-oss's SwiGLU by hand, where its clamps bite too. N rows, F hidden width."""

import math

import pytest
import torch

from mixtura.kernels.activation import activate, activate_backward


@pytest.mark.parametrize(
    ("gate", "up", "expected"),
    [
        # gate sigmoid(1.702 gate) (up + 1)
        (1.0, 3.0, 4 / (1 + math.exp(-1.702))),
        # A gate above 7 counts as 7, and 9 as 7: 7 sigmoid(11.914) (7 + 1).
        (50.0, 9.0, 56 / (1 + math.exp(-11.914))),
        # An up below -7 counts as -7: -6 times a gate of 2.
        (2.0, -30.0, -12 / (1 + math.exp(-3.404))),
        # The gate has no bound below: -10 sigmoid(-17.02) (0 + 1).
        (-10.0, 0.0, -10 / (1 + math.exp(17.02))),
    ],
)
def test_values_by_hand(gate: float, up: float, expected: float) -> None:
    h_NH = torch.tensor([[gate, up]], dtype=torch.float64)
    assert activate(h_NH, "swiglu_clamped").item() == pytest.approx(expected, rel=1e-12)


def test_what_is_clamped_has_no_gradient() -> None:
    # Rows: nothing clamped; the gate; the up, above and below. Twice the width of gate and up.
    h_NH = torch.tensor([[1.0, 2.0], [8.0, 2.0], [1.0, 9.0], [1.0, -9.0]], dtype=torch.float64)
    leaf_NH = h_NH.clone().requires_grad_()
    a_NF = activate(leaf_NH, "swiglu_clamped")
    grad_a_NF = torch.ones_like(a_NF)
    (expected,) = torch.autograd.grad(a_NF, leaf_NH, grad_a_NF)
    again_NF, grad_h_NH = activate_backward(h_NH, grad_a_NF, "swiglu_clamped")
    torch.testing.assert_close(again_NF, a_NF.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad_h_NH, expected, rtol=1e-12, atol=0)
    assert (grad_h_NH == 0).tolist() == [
        [False, False],
        [True, False],
        [False, True],
        [False, True],
    ]
