"""Shazeer's strictly balanced gate. T tokens, D width, E experts.

By hand: an identity gate and x = ln p, so that softmax gives back p.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Drop, MoE, MoEConfig, threshold_loss
from mixtura.moe.load import load
from mixtura.moe.routers import Batchwise
from mixtura.moe.tokens import Tokens

PROBS = [[0.6, 0.1, 0.3], [0.5, 0.3, 0.2], [0.1, 0.4, 0.5]]


def layer_of(num_experts: int = 3, top_k: int = 2, **fields: Any) -> MoE:
    """In float64; the gate is the identity, and its thresholds are 0.45, 0.35 and 0.25."""
    torch.manual_seed(0)
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    router = {"kind": "batchwise", **fields.pop("router", {})}
    layer = MoE(num_experts, MoEConfig.parse({**tree, "router": router, **fields})).double()
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(num_experts))
        if num_experts == 3:
            thresholds = torch.tensor([0.45, 0.35, 0.25])
            layer.router.get_parameter("log_threshold").copy_(thresholds.log())
    return layer


def gate(**fields: Any) -> Batchwise:
    router = layer_of(**fields).router
    assert isinstance(router, Batchwise)
    return router


def ln(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_training_keeps_the_best_of_the_batch_by_hand() -> None:
    # m = 2 * 3 / 3 = 2: tokens 0 and 1 of expert 0, 2 and 1 of expert 1, 2 and 0 of expert 2.
    # Token 0: 0.6 and 0.3 over 0.9. Token 1: 0.5 and 0.3 over 0.8. Token 2: 0.4 and 0.5 over 0.9.
    routing = gate()(Tokens(ln(PROBS)))
    assert routing.token_N.tolist() == [0, 1, 2, 1, 2, 0]
    assert routing.chosen_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert routing.choice_N.tolist() == [0, 0, 1, 1, 0, 1]
    expected = [6 / 9, 5 / 8, 4 / 9, 3 / 8, 5 / 9, 3 / 9]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)
    assert load(routing).tolist() == [2, 2, 2]


def test_evaluation_asks_the_thresholds_by_hand() -> None:
    # Token 0: 0.6 and 0.3 pass. Token 1: 0.5 alone, which makes its weight 1. Token 2: 0.5, 0.4.
    routing = gate().eval()(Tokens(ln(PROBS)))
    assert routing.chosen_N.view(3, 3).tolist() == [[0, 2, 3], [0, 3, 3], [2, 1, 3]]
    expected = [6 / 9, 3 / 9, 0, 1, 0, 0, 5 / 9, 4 / 9, 0]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)


def test_training_with_the_threshold_is_evaluation() -> None:
    made = gate(router={"mask": "threshold"})
    training, evaluation = made(Tokens(ln(PROBS))), made.eval()(Tokens(ln(PROBS)))
    assert torch.equal(training.chosen_N, evaluation.chosen_N)
    assert torch.equal(training.weight_N, evaluation.weight_N)
    assert {"threshold_E", "kept_TE"} <= set(training.terms)
    assert "threshold_E" not in evaluation.terms


@pytest.mark.parametrize("mask", ["batchwise", "threshold"])
def test_the_loss_and_its_gradient_by_hand(mask: str) -> None:
    # Kept by the batch and not above T: token 1 at expert 1, 0.3 under 0.35, for -(0.3 - 0.35).
    # Above T and not kept: none. The mean over 3 tokens is 0.05 / 3, and its slope in T_1 is 1/3,
    # in log T_1 0.35 / 3.
    made = gate(router={"mask": mask})
    loss = threshold_loss(made(Tokens(ln(PROBS))))
    assert loss.item() == pytest.approx(0.05 / 3, rel=1e-6)
    loss.backward()
    assert made.log_threshold.grad is not None
    assert made.log_threshold.grad.tolist() == pytest.approx([0, 0.35 / 3, 0], rel=1e-6)
    assert made.weight.grad is None


def test_too_many_above_the_threshold_raise_it() -> None:
    # T_0 = 0.05: token 2 passes with 0.1, beside tokens 0 and 1, which are kept. The loss is
    # (0.1 - 0.05) / 3, its slope in T_0 -1/3, in log T_0 -0.05 / 3.
    made = gate()
    with torch.no_grad():
        made.log_threshold.copy_(torch.tensor([0.05, 0.25, 0.25]).log())
    loss = threshold_loss(made(Tokens(ln(PROBS))))
    assert loss.item() == pytest.approx(0.05 / 3, rel=1e-6)
    loss.backward()
    assert made.log_threshold.grad is not None
    assert made.log_threshold.grad.tolist() == pytest.approx([-0.05 / 3, 0, 0], rel=1e-6)


def test_padding_is_in_no_share_and_in_no_loss() -> None:
    made, x_TD = gate(), ln([*PROBS, [0.9, 0.05, 0.05]])
    padded = made(Tokens(x_TD, torch.tensor([True, True, True, False])))
    alone = made(Tokens(ln(PROBS)))
    kept_N = padded.chosen_N < 3
    assert torch.equal(padded.token_N[kept_N], alone.token_N)
    assert torch.equal(padded.weight_N[kept_N], alone.weight_N)
    torch.testing.assert_close(threshold_loss(padded), threshold_loss(alone))


def test_a_token_without_an_expert_gets_0() -> None:
    layer = layer_of().eval()
    with torch.no_grad():
        layer.router.get_parameter("log_threshold").fill_(1.0)
    assert torch.equal(layer(ln(PROBS)).hidden, torch.zeros(3, 3, dtype=torch.float64))


def test_the_mask_of_the_batch_leaks_and_the_threshold_does_not() -> None:
    # A last token with (0.55, 0.44, 0.01) takes expert 0 from token 1, and leaves it expert 2.
    changed = ln([*PROBS[:2], [0.55, 0.44, 0.01]])
    batchwise, threshold = gate(), gate(router={"mask": "threshold"})
    experts = [
        {e for t, e in zip(r.token_N.tolist(), r.chosen_N.tolist(), strict=True) if t == 1}
        for r in (batchwise(Tokens(ln(PROBS))), batchwise(Tokens(changed)))
    ]
    assert experts == [{0, 1}, {1, 2}]
    before, after = threshold(Tokens(ln(PROBS))), threshold(Tokens(changed))
    assert torch.equal(before.chosen_N[:6], after.chosen_N[:6])


@pytest.mark.parametrize("mask", ["batchwise", "threshold"])
def test_thresholds_learn_to_do_what_the_batch_does(mask: str) -> None:
    layer = layer_of(6, 2, router={"mask": mask, "most": 6})
    common_D = torch.randn(6, dtype=torch.float64)
    optimizer = torch.optim.Adam([layer.router.get_parameter("log_threshold")], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        layer(torch.randn(256, 6, dtype=torch.float64) + common_D).loss.backward()
        optimizer.step()
    routing = layer.eval()(torch.randn(8192, 6, dtype=torch.float64) + common_D).routing
    # k / n = 2 / 6 of all tokens; steps of 0.02 in log T leave it that near.
    assert (load(routing) / 8192).tolist() == pytest.approx([1 / 3] * 6, rel=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_finite_differences(training: bool) -> None:
    made = gate(num_experts=4).train(training)
    x_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])

    def weights(x_TD: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T),)
        ).weight_N

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(weights, (x_TD, weight))


def test_thresholds_start_at_an_even_share() -> None:
    # 1/4 each, as exp(-ln 4).
    log_threshold_E = gate(num_experts=4).log_threshold
    assert log_threshold_E.exp().tolist() == pytest.approx([0.25] * 4)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_experts=1 under router kind=batchwise"):
        layer_of(1, 1)
    with pytest.raises(ConfigError, match=r"router.most=1 must lie in top_k=2..num_experts=3"):
        layer_of(router={"most": 1})
    with pytest.raises(ConfigError, match=r"balance.threshold=0.1 under router kind=softmax_topk"):
        MoEConfig.parse(
            {"num_experts": 4, "top_k": 2, "expert_width": 1, "balance": {"threshold": 0.1}}
        )
    with pytest.raises(ValueError, match="kind=batchwise: capacity is built in"):
        gate()(Tokens(ln(PROBS)), Drop(1.0))
