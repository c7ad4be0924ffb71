"""A gate that learns by REINFORCE. T tokens, D width, E experts.

By hand: an identity gate and x = ln p, so that softmax gives back p.
"""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.moe import MoE, MoEConfig, MoEOutput, late_losses, reinforce_loss
from mixtura.moe.routers import Reinforce
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

P = [0.2, 0.3, 0.5]


def loss_of(router: nn.Module, routing: Routing, reward_T: Tensor) -> Tensor:
    """The loss under the weights of the router's own config."""
    assert isinstance(router, Reinforce)
    return reinforce_loss(routing, reward_T, router.config.baseline, router.config.entropy)


def layer_of(num_experts: int = 3, top_k: int = 1, **fields: Any) -> MoE:
    """In float64; the gate is the identity."""
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    router = {"kind": "reinforce", **fields.pop("router", {})}
    torch.manual_seed(0)
    layer = MoE(num_experts, MoEConfig.parse({**tree, "router": router, **fields})).double()
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(num_experts))
    return layer


def gate(**fields: Any) -> Reinforce:
    router = layer_of(**fields).router
    assert isinstance(router, Reinforce)
    return router


def ln(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_evaluation_takes_the_likeliest() -> None:
    routing = gate().eval()(Tokens(ln([P])))
    assert routing.chosen_N.tolist() == [2]
    assert routing.weight_N.tolist() == [1]
    assert "log_prob_T" not in routing.terms


def test_training_draws_from_the_policy() -> None:
    # 10,000 draws: shares within 4 standard deviations of sqrt(0.25 / 10000) = 0.005.
    routing = gate()(Tokens(ln([P]).expand(10_000, 3)))
    share_E = routing.chosen_N.bincount(minlength=3) / 10_000
    assert share_E.tolist() == pytest.approx(P, abs=0.02)
    assert torch.equal(routing.weight_N, torch.ones_like(routing.weight_N))
    # Its terms are those of what was drawn.
    drawn_T = torch.tensor(P, dtype=torch.float64)[routing.chosen_N].log()
    torch.testing.assert_close(routing.terms["log_prob_T"], drawn_T)


def test_terms_by_hand() -> None:
    made = gate()
    with torch.no_grad():
        made.baseline_weight.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        made.baseline_bias.fill_(0.5)
    terms = made(Tokens(ln([P]))).terms
    entropy = -sum(p * log(p) for p in P)
    assert terms["entropy_T"].tolist() == pytest.approx([entropy], rel=1e-12)
    baseline = log(0.2) + 2 * log(0.5) + 0.5
    assert terms["baseline_T"].tolist() == pytest.approx([baseline], rel=1e-12)


def routing_of(
    log_prob: Tensor, baseline: Tensor, entropy: Tensor, valid: Tensor | None
) -> Routing:
    terms = {"log_prob_T": log_prob, "baseline_T": baseline, "entropy_T": entropy}
    first_TK = torch.zeros(len(log_prob), 1, dtype=torch.int64)
    routing = Routing.of_choices(first_TK, torch.ones(len(log_prob), 1), 2, valid_T=valid)
    return replace(routing, terms=terms)


def test_the_loss_and_its_gradients_by_hand() -> None:
    # Token 0: advantage 3 - 1 = 2, -2 * -0.5 = 1, square 4 * 0.5 = 2, entropy 0.1 * 0.6: 2.94.
    # Token 1: advantage -1 - 1 = -2, 2 * -0.25 = -0.5, square 2, entropy 0.1 * 0.2: 1.48.
    log_prob_T = torch.tensor([-0.5, -0.25], dtype=torch.float64, requires_grad=True)
    baseline_T = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    entropy_T = torch.tensor([0.6, 0.2], dtype=torch.float64, requires_grad=True)
    reward_T = torch.tensor([3.0, -1.0], dtype=torch.float64)
    routing = routing_of(log_prob_T, baseline_T, entropy_T, None)
    loss = reinforce_loss(routing, reward_T, baseline=0.5, entropy=0.1)
    assert loss.item() == pytest.approx((2.94 + 1.48) / 2, rel=1e-12)
    loss.backward()
    # Means over 2: -advantage / 2; 0.5 * 2 * (b - r) / 2; -0.1 / 2.
    assert log_prob_T.grad is not None
    assert baseline_T.grad is not None
    assert entropy_T.grad is not None
    assert log_prob_T.grad.tolist() == pytest.approx([-1, 1])
    assert baseline_T.grad.tolist() == pytest.approx([-1, 1])
    assert entropy_T.grad.tolist() == pytest.approx([-0.05, -0.05])
    # Padding in token 1's place leaves token 0's alone.
    padded = routing_of(log_prob_T, baseline_T, entropy_T, torch.tensor([True, False]))
    assert reinforce_loss(padded, reward_T, 0.5, 0.1).item() == pytest.approx(2.94, rel=1e-12)


def test_its_gradient_in_the_logits_is_advantage_times_p_less_the_choice() -> None:
    # d(-A log p_e) / d logit = A (p - onehot(e)), with A = 1.5 and no baseline as yet.
    made = gate(router={"entropy": 0.0, "baseline": 0.0})
    logits_TE = ln([P]).requires_grad_()
    routing = made(Tokens(logits_TE))
    loss_of(made, routing, torch.tensor([1.5], dtype=torch.float64)).backward()
    expected = torch.tensor(P, dtype=torch.float64)
    expected[routing.chosen_N] -= 1
    assert logits_TE.grad is not None
    torch.testing.assert_close(logits_TE.grad[0], 1.5 * expected)


def test_the_baseline_takes_no_gradient_to_the_trunk() -> None:
    made = gate(router={"entropy": 0.0, "baseline": 1.0})
    x_TD = ln([P]).requires_grad_()
    with torch.no_grad():
        made.baseline_weight.fill_(1.0)
    routing = made(Tokens(x_TD))
    routing.terms["baseline_T"].sum().backward()
    assert x_TD.grad is None
    # The gradient of b in its weights is x, in its bias 1.
    assert made.baseline_weight.grad is not None
    torch.testing.assert_close(made.baseline_weight.grad, x_TD.detach())
    assert made.baseline_bias.grad is not None
    assert made.baseline_bias.grad.tolist() == [1]


def test_gradients_equal_finite_differences() -> None:
    made = gate(num_experts=4, router={"entropy": 0.3, "baseline": 0.0})
    torch.manual_seed(4)
    x_TD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    reward_T = torch.randn(5, dtype=torch.float64)

    def loss(x_TD: Tensor, weight: Tensor) -> Tensor:
        # The same draws each time; the advantage's own slope is no part of the estimator.
        torch.manual_seed(0)
        routing = torch.func.functional_call(made, {"weight": weight}, (Tokens(x_TD),))
        return loss_of(made, routing, reward_T)

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x_TD, weight))


@pytest.mark.parametrize("better", [0, 1])
def test_it_learns_the_better_of_two_experts(better: int) -> None:
    # A bandit: 1 for the better expert, 0 for the other, from an even start.
    made = gate(num_experts=2)
    with torch.no_grad():
        made.weight.zero_()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    x_TD = torch.ones(32, 2, dtype=torch.float64)
    for _ in range(100):
        routing = made(Tokens(x_TD))
        reward_T = (routing.chosen_N == better).double()
        optimizer.zero_grad()
        loss_of(made, routing, reward_T).backward()
        optimizer.step()
    routing = made(Tokens(x_TD))
    assert routing.probs_TE is not None
    assert routing.probs_TE[0, better] > 0.95
    # And it has come to expect nearly that.
    assert routing.terms["baseline_T"][0].item() == pytest.approx(1, abs=0.1)
    assert made.eval()(Tokens(x_TD)).chosen_N.tolist() == [better] * 32


def test_the_layers_loss_comes_with_the_nats() -> None:
    layer = layer_of(balance={"policy": 0.5, "loss": 0.0, "z_loss": 0.0})
    x_TD = torch.randn(4, 3, dtype=torch.float64)
    output: MoEOutput = layer(x_TD)
    assert output.losses == {}
    # Nats 1, 2, 3, 6 with a mean of 3: rewards 2, 1, 0, -3.
    nats_T = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    _, with_policy = late_losses((None, output), nats_T)
    assert with_policy is not None
    rewards = torch.tensor([2.0, 1.0, 0.0, -3.0], dtype=torch.float64)
    expected = 0.5 * loss_of(layer.router, output.routing, rewards)
    assert with_policy.losses.keys() == {"policy"}
    torch.testing.assert_close(with_policy.losses["policy"], expected)
    assert layer.eval()(x_TD).late_loss is None


def test_padding_is_not_in_the_mean() -> None:
    # Nats 1 and 3 of tokens, 50 of padding: rewards 1 and -1.
    layer = layer_of(balance={"policy": 1.0})
    valid_T = torch.tensor([True, True, False])
    output: MoEOutput = layer(torch.randn(3, 3, dtype=torch.float64), valid_T)
    (found,) = late_losses((output,), torch.tensor([1.0, 3.0, 50.0]))
    assert found is not None
    rewards = torch.tensor([1.0, -1.0, 0.0])
    expected = loss_of(layer.router, output.routing, rewards)
    torch.testing.assert_close(found.losses["policy"], expected)


def test_a_layer_without_the_weight_has_no_late_loss() -> None:
    x_TD = torch.randn(4, 3, dtype=torch.float64)
    assert layer_of(balance={"policy": 0.0})(x_TD).late_loss is None
    switch = MoEConfig.parse(
        {"num_experts": 3, "top_k": 1, "expert_width": 4, "router": {"kind": "switch"}}
    )
    assert MoE(3, switch)(torch.randn(4, 3)).late_loss is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_k": 2}, "top_k=2 under router kind=reinforce.*set top_k=1"),
        ({"capacity": {"policy": "reroute"}}, "policy=reroute under router kind=reinforce"),
        ({"router": {"entropy": -0.1}}, "entropy"),
        ({"router": {"baseline": float("inf")}}, "baseline"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layer_of(**fields)


def test_the_policy_loss_is_refused_under_another_router() -> None:
    with pytest.raises(ConfigError, match=r"balance.policy=0.1 under router kind=softmax_topk"):
        MoEConfig.parse(
            {"num_experts": 4, "top_k": 2, "expert_width": 1, "balance": {"policy": 0.1}}
        )
