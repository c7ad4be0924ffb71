"""As many experts as a token needs. T tokens, D width, E experts, K the most experts per token."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import (
    Drop,
    Dropless,
    MoE,
    MoEConfig,
    Reroute,
    Wave,
    balance_loss,
    entropy_loss,
)
from mixtura.moe.capacity import Capacity
from mixtura.moe.load import computed_load, load
from mixtura.moe.routers import RouterShape, TopP
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

RULES: dict[str, Capacity] = {
    "dropless": Dropless(),
    "drop": Drop(0.7),
    "reroute": Reroute(0.7),
    "wave": Wave(0.7),
}

# ln 1, ln 2, ln 5: softmax gives 1/8, 2/8, 5/8.
X_1D = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()


def config(num_experts: int = 3, top_k: int = 3, **fields: Any) -> MoEConfig:
    balance = fields.pop("balance", {})
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4, "balance": balance}
    return MoEConfig.parse({**tree, "router": {"kind": "top_p", **fields}})


def gate(num_experts: int = 3, top_k: int = 3, width: int | None = None, **fields: Any) -> TopP:
    """In float64; where no width is given the gate is the identity, so that x is the logits."""
    of = config(num_experts, top_k, **fields).router
    made = of.build(RouterShape(width or num_experts, num_experts, top_k), Dropless()).double()
    assert isinstance(made, TopP)
    if width is None:
        with torch.no_grad():
            made.weight.copy_(torch.eye(num_experts))
    return made


def taken(routing: Routing) -> list[int]:
    """How many experts each token wishes for."""
    assert routing.top_k is not None
    return (routing.chosen_N < routing.num_experts).view(-1, routing.top_k).sum(1).tolist()


@pytest.mark.parametrize(
    ("fields", "experts", "weights"),
    [
        # 5/8 = 0.625 is enough for 0.6, and no longer for 0.7: 7/8 is.
        ({"p": 0.6}, [2, 3, 3], [5 / 8, 0, 0]),
        ({"p": 0.625}, [2, 3, 3], [5 / 8, 0, 0]),
        ({"p": 0.7}, [2, 1, 3], [5 / 8, 2 / 8, 0]),
        ({"p": 0.9}, [2, 1, 0], [5 / 8, 2 / 8, 1 / 8]),
        ({"p": 1.0}, [2, 1, 0], [5 / 8, 2 / 8, 1 / 8]),
        # Two at most.
        ({"p": 0.9, "top_k": 2}, [2, 1], [5 / 8, 2 / 8]),
        # 5/8 and 2/8 over their sum of 7/8; one over itself.
        ({"p": 0.7, "renormalise": True}, [2, 1, 3], [5 / 7, 2 / 7, 0]),
        ({"p": 0.6, "renormalise": True}, [2, 3, 3], [1, 0, 0]),
    ],
)
def test_choice_and_weights_by_hand(
    fields: dict[str, Any], experts: list[int], weights: list[float]
) -> None:
    routing = gate(**fields)(Tokens(X_1D))
    assert routing.chosen_N.tolist() == routing.expert_N.tolist() == experts
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)
    # Before capacity too, rows of no expert weigh nothing.
    assert torch.equal(routing.terms["gate_N"], routing.weight_N)
    assert not routing.dropped_N.any()


@given(
    experts=st.integers(1, 64),
    hundredths=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    most=st.integers(1, 64),
)
# Summed one by one, 5/25 falls short of 0.2 in fp32 and 8/10 of 0.8 in float64, by rounding.
@example(experts=25, hundredths=20, dtype=torch.float32, most=25)
@example(experts=10, hundredths=80, dtype=torch.float64, most=10)
@settings(max_examples=150, deadline=None)
def test_uniform_probabilities_take_the_share_p_of_experts(
    experts: int, hundredths: int, dtype: torch.dtype, most: int
) -> None:
    # k of E equal experts sum to k/E, which reaches p first at k = ceil(p E).
    top_k = min(most, experts)
    made = gate(experts, top_k, p=hundredths / 100).to(dtype)
    routing = made(Tokens(torch.zeros(1, experts, dtype=dtype)))
    assert taken(routing) == [min(math.ceil(Fraction(hundredths, 100) * experts), top_k)]


@pytest.mark.parametrize("p", [1e-9, 0.4, 0.99])
def test_a_peaked_gate_takes_one_expert(p: float) -> None:
    # e^9 / (e^9 + 7) = 0.9991.
    logits = torch.zeros(1, 8, dtype=torch.float64)
    logits[0, 5] = 9
    assert gate(8, 8, p=p)(Tokens(logits)).chosen_N.tolist() == [5] + [8] * 7


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(1, 6), st.integers(0, 9999))
@settings(max_examples=80, deadline=None)
def test_smaller_p_never_takes_more_and_always_enough(
    one: float, other: float, top_k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_TD = 2 * torch.randn(8, 6, dtype=torch.float64, generator=generator)
    small, large = (gate(6, top_k, p=p)(Tokens(x_TD)) for p in sorted((one, other)))
    assert all(few <= many for few, many in zip(taken(small), taken(large), strict=True))
    # The same experts, so far as they go.
    kept_N = small.chosen_N < 6
    assert torch.equal(small.chosen_N[kept_N], large.chosen_N[kept_N])
    best_TE = x_TD.softmax(-1).sort(descending=True).values
    for count, best in zip(taken(large), best_TE.tolist(), strict=True):
        assert count >= 1
        assert count == top_k or sum(best[:count]) >= max(one, other) - 1e-6
        # One fewer would not have done.
        assert count == 1 or sum(best[: count - 1]) < max(one, other)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_equal_finite_differences(rule: Capacity, renormalise: bool) -> None:
    torch.manual_seed(3)
    made = gate(4, 3, width=3, p=0.6, renormalise=renormalise)
    x_TD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])
    assert {1, 2} <= set(taken(made(Tokens(x_TD))))

    def run(x_TD: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routing = torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T), rule)
        )
        return routing.weight_N, balance_loss(routing), entropy_loss(routing)

    assert torch.autograd.gradcheck(run, (x_TD, made.weight.detach().requires_grad_()))


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_capacity_rule_leaves_rows_of_no_expert_alone(
    rule: Capacity, renormalise: bool
) -> None:
    torch.manual_seed(0)
    layer = MoE(5, config(6, 4, p=0.5, renormalise=renormalise)).double()
    x = torch.randn(2, 20, 5, dtype=torch.float64) + torch.linspace(-2, 2, 5)
    limited, free = layer(x, capacity=rule), layer(x, capacity=Dropless())
    none_N = free.routing.chosen_N == 6
    assert 0 < none_N.sum() < 120
    assert torch.equal(limited.routing.chosen_N, free.routing.chosen_N)
    assert (limited.routing.expert_N[none_N] == 6).all()
    assert (limited.routing.weight_N[none_N] == 0).all()
    assert not limited.routing.dropped_N[none_N].any()
    limited.hidden.sum().backward()
    if isinstance(rule, Wave):
        torch.testing.assert_close(limited.hidden, free.hidden)
    if isinstance(rule, Drop | Reroute):
        # Four rows a token, whatever it wishes for: ceil(0.7 * 20 * 4 / 6) = 10 in each sequence.
        assert computed_load(limited.routing).max() <= 20
        assert not torch.equal(limited.routing.expert_N, free.routing.expert_N)


def test_a_rerouted_row_has_the_weight_of_the_expert_it_came_to() -> None:
    # Two tokens wish for expert 2 alone. Capacity ceil(0.4 * 2 * 3 / 3) = 1: the second goes to its
    # next-best expert, 1. Rows of no expert stay where they are.
    routing = gate(p=0.6)(Tokens(X_1D.repeat(2, 1)), Reroute(0.4))
    assert routing.chosen_N.tolist() == [2, 3, 3, 2, 3, 3]
    assert routing.expert_N.tolist() == [2, 3, 3, 1, 3, 3]
    assert routing.weight_N.tolist() == pytest.approx([5 / 8, 0, 0, 2 / 8, 0, 0], rel=1e-12)


def test_load_and_balance_count_what_is_taken() -> None:
    # Three tokens, p = 0.7: 5/8 and 2/8, so experts 2 and 1; turned round, 0 and 1. A peaked one
    # takes expert 0 alone. Shares 2/5, 2/5, 1/5.
    peaked_1D = torch.tensor([[20.0, 0, 0]], dtype=torch.float64)
    routing = gate(p=0.7)(Tokens(torch.cat([X_1D, X_1D.flip(1), peaked_1D])))
    assert taken(routing) == [2, 2, 1]
    assert load(routing).tolist() == [2, 2, 1]
    assert routing.probs_TE is not None
    p0, p1, p2 = routing.probs_TE.mean(0).tolist()
    expected = 3 * (2 / 5 * p0 + 2 / 5 * p1 + 1 / 5 * p2)
    assert balance_loss(routing).item() == pytest.approx(expected, rel=1e-12)


def test_padding_counts_nowhere() -> None:
    x_TD = torch.cat([X_1D, X_1D.flip(1)])
    made = gate(p=0.7)
    padded, alone = made(Tokens(x_TD, torch.tensor([True, False]))), made(Tokens(X_1D))
    assert padded.expert_N.tolist() == [*alone.expert_N.tolist(), 3, 3, 3]
    assert torch.equal(load(padded), load(alone))
    for loss in (balance_loss, entropy_loss):
        torch.testing.assert_close(loss(padded), loss(alone))


def test_entropy_by_hand() -> None:
    # Uniform over 2 of 2: ln 2. Sure: 0. Mean: ln 2 / 2; with the sure one as padding, ln 2.
    made = gate(2, 2)
    x_TD = torch.tensor([[0.0, 0.0], [900.0, 0.0]], dtype=torch.float64)
    assert entropy_loss(made(Tokens(x_TD))).item() == pytest.approx(math.log(2) / 2, rel=1e-12)
    padded = made(Tokens(x_TD, torch.tensor([True, False])))
    assert entropy_loss(padded).item() == pytest.approx(math.log(2), rel=1e-12)
    assert entropy_loss(made(Tokens(x_TD, torch.tensor([False, False])))).item() == 0


def test_entropy_of_a_probability_that_underflows_has_a_gradient() -> None:
    # Softmax of -200 beside 0 is 0 in fp32, where p ln p has no slope.
    made = gate(3).float()
    x_TD = torch.tensor([[0.0, -200.0, -1.0]], requires_grad=True)
    entropy_loss(made(Tokens(x_TD))).backward()
    assert x_TD.grad is not None
    assert torch.isfinite(x_TD.grad).all()
    assert x_TD.grad.any()


def test_the_entropy_loss_lowers_the_number_of_experts() -> None:
    torch.manual_seed(0)
    layer = MoE(5, config(8, 8, p=0.6, balance={"loss": 0, "z_loss": 0, "entropy": 1.0}))
    x_TD = torch.randn(64, 5)
    before = sum(taken(layer(x_TD).routing))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        layer(x_TD).loss.backward()
        optimizer.step()
    assert sum(taken(layer(x_TD).routing)) < 0.8 * before


def test_default_losses() -> None:
    layer = MoE(3, config())
    assert layer.balancer.weights == {"balance": 0.01, "z": 0.001, "entropy": 0.0001}


def test_no_tokens_and_one_expert() -> None:
    output = MoE(5, config())(torch.empty(0, 5))
    assert output.hidden.shape == (0, 5)
    # A load without a row counts as even, 1, times the balance loss's weight.
    assert output.losses["balance"].item() == pytest.approx(0.01)
    routing = gate(1, 1)(Tokens(torch.zeros(2, 1, dtype=torch.float64)))
    assert (routing.chosen_N.tolist(), routing.weight_N.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("p", [0, -0.1, 1.1, float("nan")])
def test_p_lies_above_0_and_up_to_1(p: float) -> None:
    with pytest.raises(ConfigError, match=r"router\.p"):
        config(p=p)


def test_one_renormalised_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_k=1 under router kind=top_p.*renormalise=false"):
        config(top_k=1, renormalise=True).check_gradient()


def test_a_hierarchical_router_does_not_hold_it() -> None:
    parts = {"outer": {"kind": "switch"}, "inner": {"kind": "top_p"}}
    router = {"kind": "hierarchical", "groups": 3, **parts}
    with pytest.raises(ConfigError, match=r"router\.inner.*top_p"):
        MoEConfig.parse({"num_experts": 6, "top_k": 1, "expert_width": 4, "router": router})
