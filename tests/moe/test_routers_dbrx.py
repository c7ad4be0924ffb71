"""DBRX's gate: weights over their norm. T tokens, D width, E experts, K experts per token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Dropless, MoE, MoEConfig
from mixtura.moe.routers import Dbrx, Hierarchical, RouterShape
from mixtura.moe.tokens import Tokens


def config(num_experts: int = 3, top_k: int = 2, **router: Any) -> MoEConfig:
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    return MoEConfig.parse({**tree, "router": {"kind": "dbrx", **router}})


def gate(width: int = 3, num_experts: int = 3, top_k: int = 2, **router: Any) -> Dbrx:
    of = config(num_experts, top_k, **router).router
    made = of.build(RouterShape(width, num_experts, top_k), Dropless()).double()
    assert isinstance(made, Dbrx)
    return made


def identity(**router: Any) -> Dbrx:
    made = gate(**router)
    with torch.no_grad():
        made.weight.copy_(torch.eye(3))
    return made


# ln 1, ln 2, ln 5: softmax gives 1/8, 2/8, 5/8.
X_1D = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("norm", "weights"),
    [
        # 5/8 and 2/8 over their sum of 7/8.
        (1.0, [5 / 7, 2 / 7]),
        # Over sqrt(25 + 4) / 8.
        (2.0, [5 / math.sqrt(29), 2 / math.sqrt(29)]),
        (None, [5 / 8, 2 / 8]),
    ],
)
def test_weights_by_hand(norm: float | None, weights: list[float]) -> None:
    routing = identity(norm=norm)(Tokens(X_1D))
    assert routing.chosen_N.tolist() == [2, 1]
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)


def test_four_of_sixteen_equal_the_quotient() -> None:
    # Softmax over all, the four largest, over the sum of their squares' root.
    torch.manual_seed(0)
    made = gate(width=8, num_experts=16, top_k=4, norm=2)
    x_TD = torch.randn(50, 8, dtype=torch.float64)
    weight_TK, expert_TK = (x_TD @ made.weight.T).softmax(-1).topk(4)
    routing = made(Tokens(x_TD))
    assert torch.equal(routing.chosen_N.view(-1, 4), expert_TK)
    weight_TK = weight_TK / weight_TK.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(routing.weight_N.view(-1, 4), weight_TK)


def test_weights_of_hopeless_experts_are_no_nan() -> None:
    # exp(-800) is 0 in float64 too; the k lie far below the expert left out by capacity or a move.
    made = identity()
    scores = made.score(torch.tensor([[0.0, -800.0, -800.0]], dtype=torch.float64))
    assert made.weigh(scores, torch.tensor([[1, 2]])).tolist() == [[0.5, 0.5]]


def test_jitter_scales_each_input_in_training_alone() -> None:
    made = identity(jitter=0.2)
    x_TD = torch.ones(1000, 3, dtype=torch.float64)
    logits_TE = made.train()(Tokens(x_TD)).logits_TE
    assert 0.8 <= logits_TE.min().item() < 0.81
    assert 1.19 < logits_TE.max().item() <= 1.2
    assert torch.equal(made.eval()(Tokens(x_TD)).logits_TE, x_TD)
    assert torch.equal(identity().train()(Tokens(x_TD)).logits_TE, x_TD)


def test_default_losses() -> None:
    layer = MoE(3, config())
    assert layer.balancer.weights == {"balance": 0.05}


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.5, None])
def test_gradients_equal_finite_differences(norm: float | None) -> None:
    torch.manual_seed(3)
    made = gate(width=3, num_experts=5, top_k=3, norm=norm)
    x_TD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def run(x_TD: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"weight": weight}, (Tokens(x_TD),)).weight_N

    assert torch.autograd.gradcheck(run, (x_TD, made.weight.detach().requires_grad_()))


@pytest.mark.parametrize("policy", ["drop", "reroute", "wave"])
def test_the_layer_runs_with_every_policy(policy: str) -> None:
    of = MoEConfig.parse(
        {
            "num_experts": 16,
            "top_k": 4,
            "expert_width": 4,
            "router": {"kind": "dbrx"},
            "capacity": {"policy": policy, "factor": 0.7},
        }
    )
    torch.manual_seed(0)
    layer = MoE(3, of).double()
    x = torch.randn(2, 10, 3, dtype=torch.float64)
    limited, free = layer(x), layer(x, capacity=Dropless())
    if policy == "wave":
        torch.testing.assert_close(limited.hidden, free.hidden)
    else:
        assert not torch.equal(limited.routing.expert_N, free.routing.expert_N)
    assert layer(x[:, :0]).hidden.shape == (2, 0, 3)


@pytest.mark.parametrize("norm", [0, -1, float("inf"), float("nan")])
def test_norm_is_above_0_and_finite(norm: float) -> None:
    with pytest.raises(ConfigError, match="norm"):
        config(norm=norm)


def test_jitter_lies_in_0_to_1() -> None:
    with pytest.raises(ConfigError, match="jitter"):
        config(jitter=1.0)


def test_one_expert_over_its_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_k=1 under router kind=dbrx.*norm=null"):
        config(top_k=1).check_gradient()
    routing = identity_of_one()(Tokens(X_1D))
    assert routing.weight_N.tolist() == pytest.approx([5 / 8], rel=1e-12)


def identity_of_one() -> Dbrx:
    made = gate(top_k=1, norm=None)
    with torch.no_grad():
        made.weight.copy_(torch.eye(3))
    return made


@pytest.mark.parametrize("side", ["inner", "outer"])
def test_under_a_hierarchical_router_it_is_the_flat_one(side: str) -> None:
    softmax = {"kind": "softmax_topk", "renormalise": False}
    groups, outer_top_k = (1, 1) if side == "inner" else (6, 2)
    router = {"groups": groups, "outer_top_k": outer_top_k, "outer": softmax, "inner": softmax}
    of = config(6, 2, **{**router, "kind": "hierarchical", side: {"kind": "dbrx", "norm": 2}})
    made = of.router.build(RouterShape(3, 6, 2), Dropless()).double()
    assert isinstance(made, Hierarchical)
    flat = gate(num_experts=6, norm=2)
    (made.inner if side == "inner" else made.outer).load_state_dict(flat.state_dict())
    x_TD = torch.randn(30, 3, dtype=torch.float64)
    found, expected = made(Tokens(x_TD)), flat(Tokens(x_TD))
    assert torch.equal(found.chosen_N, expected.chosen_N)
    torch.testing.assert_close(found.weight_N, expected.weight_N)
