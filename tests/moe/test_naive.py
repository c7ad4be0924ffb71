"""The layer that a student reads first, by hand and against `MoE`."""

import torch
from torch import nn

from mixtura import MoE, MoEConfig
from mixtura.moe.naive import NaiveMoE

# Tokens, width, experts, experts per token, expert width.
T, D, E, K, F = 23, 12, 5, 2, 7


def test_naive_moe_of_one_number_by_hand() -> None:
    layer = NaiveMoE(width=1, num_experts=2, top_k=1, expert_width=1)
    with torch.no_grad():
        layer.gate_ED.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.w_in_EHD.copy_(torch.tensor([[[2.0], [3.0]], [[1.0], [1.0]]]))
        layer.w_out_EDF.copy_(torch.tensor([[[5.0]], [[7.0]]]))
    out_TD, balance = layer(torch.tensor([[1.0], [2.0]]))
    # Both tokens choose expert 0 with weight 1: 5 silu(2) 3 and 5 silu(4) 6.
    silu = [x / (1 + 2.718281828**-x) for x in (2.0, 4.0)]
    torch.testing.assert_close(out_TD, torch.tensor([[15 * silu[0]], [30 * silu[1]]]))
    # f = (1, 0); P_0 = mean of 1 / (1 + e^-2) and 1 / (1 + e^-4) = (0.8808 + 0.9820) / 2.
    torch.testing.assert_close(balance, torch.tensor(2 * 0.9314), rtol=0, atol=1e-4)


def test_moe_is_the_naive_layer_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    naive = NaiveMoE(D, E, K, F).double()
    config = MoEConfig(num_experts=E, top_k=K, expert_width=F)
    layer = MoE(D, config).double()
    layer.load_state_dict(
        {
            "router.weight": naive.gate_ED,
            "experts.w_in": naive.w_in_EHD,
            "experts.w_out": naive.w_out_EDF,
        }
    )
    x_TD = torch.randn(T, D, dtype=torch.float64)
    expected_TD, balance = naive(x_TD)
    output = layer(x_TD)
    torch.testing.assert_close(output.hidden, expected_TD)
    # Switch's weight of the balance loss is 0.01.
    torch.testing.assert_close(output.losses["balance"], 0.01 * balance, check_dtype=False)

    slope_TD = torch.randn_like(x_TD)
    ((expected_TD * slope_TD).sum() + balance).backward()
    ((output.hidden * slope_TD).sum() + 100 * output.losses["balance"]).backward()
    names = ("router.weight", "experts.w_in", "experts.w_out")
    for name, ours in zip(names, naive.parameters(), strict=True):
        torch.testing.assert_close(gradient(layer, name), ours.grad, msg=name)


def gradient(layer: nn.Module, name: str) -> torch.Tensor | None:
    return layer.get_parameter(name).grad
