"""GShard's random second choice. T tokens, D width, E experts, K = 2 experts per token.

The twin is algorithm 1 of the paper as it reads: serial, in Python's own numbers.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Drop, Dropless, MoE, MoEConfig, Reroute, Wave, balance_loss
from mixtura.moe.capacity import Capacity
from mixtura.moe.load import computed_load, load
from mixtura.moe.routers import GShard, Hierarchical, Router, RouterShape, TokenChoiceRouter
from mixtura.moe.routing import Routing, first_choices
from mixtura.moe.tokens import Tokens

RULES: dict[str, Capacity] = {
    "dropless": Dropless(),
    "drop": Drop(0.7),
    "group": Drop(0.7, "group"),
    "reroute": Reroute(0.7),
    "wave": Wave(0.7),
}


def config(num_experts: int = 3, **fields: Any) -> MoEConfig:
    tree = {"num_experts": num_experts, "top_k": 2, "expert_width": 4, "router": {"kind": "gshard"}}
    return MoEConfig.parse({**tree, **fields})


def gate(num_experts: int = 3, rule: Capacity | None = None, width: int | None = None) -> GShard:
    """In float64; where no width is given the gate is the identity, so that x is the logits."""
    shape = RouterShape(width or num_experts, num_experts, 2)
    made = config(num_experts).router.build(shape, rule or Dropless()).double()
    assert isinstance(made, GShard)
    if width is None:
        with torch.no_grad():
            made.weight.copy_(torch.eye(num_experts))
    return made


def seeded(made: Router, x_TD: Tensor, seed: int) -> tuple[Routing, list[float]]:
    """The routing, and what was drawn for it."""
    torch.manual_seed(seed)
    routing = made(Tokens(x_TD))
    torch.manual_seed(seed)
    return routing, torch.rand(len(x_TD), dtype=x_TD.dtype).tolist()


# ln 1, ln 2, ln 5: softmax gives 1/8, 2/8, 5/8, of which the two best are 5/7 and 2/7.
X_1D = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()


def test_evaluation_takes_both_choices_by_hand() -> None:
    routing = gate().eval()(Tokens(X_1D.repeat(50, 1)))
    assert routing.chosen_N.tolist() == routing.expert_N.tolist() == [2, 1] * 50
    assert routing.weight_N.tolist() == pytest.approx([5 / 7, 2 / 7] * 50, rel=1e-12)


def test_training_takes_the_second_choice_with_twice_its_weight_as_chance() -> None:
    # 2 * 2/7 = 4/7 of 7000 rows is 4000, give or take sqrt(7000 * 4/7 * 3/7) = 41.
    routing, drawn = seeded(gate().train(), X_1D.repeat(7000, 1), seed=0)
    taken = [draw < 4 / 7 for draw in drawn]
    second_N = routing.chosen_N[1::2]
    assert second_N.tolist() == [1 if each else 3 for each in taken]
    assert abs(sum(taken) - 4000) < 5 * 41
    # What is given up computes nothing, weighs nothing, counts in no load, and is no loss.
    assert torch.equal(routing.expert_N, routing.chosen_N)
    expected = [weight for each in taken for weight in (5 / 7, 2 / 7 if each else 0)]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)
    assert load(routing).tolist() == [0, sum(taken), 7000]
    assert not routing.dropped_N.any()


@dataclass
class Dispatched:
    """expert[s][k], E where none; weight[s][k]; and the auxiliary loss."""

    expert: list[list[int]]
    weight: list[list[float]]
    l_aux: float


def algorithm_1(logits: list[list[float]], drawn: list[float], factor: str) -> Dispatched:
    tokens, experts = len(logits), len(logits[0])
    capacity = math.ceil(Fraction(factor) * 2 * tokens / experts)
    gates = []
    for row in logits:
        total = sum(math.exp(logit) for logit in row)
        gates.append([math.exp(logit) / total for logit in row])
    found = Dispatched([[experts] * 2 for _ in gates], [[0.0] * 2 for _ in gates], 0.0)
    best = [sorted(range(experts), key=row.__getitem__, reverse=True)[:2] for row in gates]
    count = [0] * experts

    def dispatch(s: int, k: int, accepted: bool) -> None:
        e = best[s][k]
        if count[e] < capacity and accepted:
            found.expert[s][k] = e
            found.weight[s][k] = gates[s][e] / sum(gates[s][other] for other in best[s])
        count[e] += 1

    for s in range(tokens):
        dispatch(s, 0, accepted=True)
    mean = [sum(row[e] for row in gates) / tokens for e in range(experts)]
    found.l_aux = sum(count[e] / tokens * mean[e] for e in range(experts)) / experts
    for s in range(tokens):
        second = gates[s][best[s][1]] / sum(gates[s][e] for e in best[s])
        dispatch(s, 1, accepted=2 * second > drawn[s])
    return found


@given(
    tokens=st.integers(1, 14),
    num_experts=st.integers(2, 5),
    factor=st.sampled_from(["0.5", "1", "1.25"]),
    skew=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=80, deadline=None)
def test_it_is_algorithm_1(
    tokens: int, num_experts: int, factor: str, skew: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, num_experts, dtype=torch.float64, generator=generator)
    x_TD[:, 0] += skew
    made = gate(num_experts, Drop(float(factor), "group")).train()
    routing, drawn = seeded(made, x_TD, seed)
    expected = algorithm_1(x_TD.tolist(), drawn, factor)
    assert routing.expert_N.view(-1, 2).tolist() == expected.expert
    weights = [weight for row in expected.weight for weight in row]
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)
    ours = balance_loss(first_choices(routing)).item()
    assert ours / num_experts**2 == pytest.approx(expected.l_aux, rel=1e-12)


def test_capacity_at_factor_1_is_twice_tokens_over_experts() -> None:
    # 8 tokens, 4 experts: C = 2 * 8 / 4 = 4. All prefer expert 0, then 1: four rows stay at each.
    x_TD = torch.tensor([[3.0, 2, 0, 0]], dtype=torch.float64).repeat(8, 1)
    routing = gate(4, Drop(1.0, "group")).eval()(Tokens(x_TD))
    assert load(routing).tolist() == [8, 8, 0, 0]
    assert computed_load(routing).tolist() == [4, 4, 0, 0]


def test_first_choices_of_later_tokens_go_before_second_ones() -> None:
    # C = 2 * 2 / 2 = 2 at factor 1, so 1 at 0.5. Token 0 prefers 0 and then 1, token 1 only turned
    # round: each expert's one place is a first choice's.
    x_TD = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    routing = gate(2, Drop(0.5, "group")).eval()(Tokens(x_TD))
    assert routing.expert_N.tolist() == [0, 2, 1, 2]


def test_a_given_up_row_takes_its_room() -> None:
    # Weight 1/(1 + e^9) of the second choice: given up, but for one draw in 4000. Capacity
    # 0.5 * 4 / 2 = 1 over both tokens: token 1's first choice comes before token 0's second in a
    # group, and after it in a sequence, where it finds its place taken by a row given up.
    x_TD = torch.tensor([[9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    torch.manual_seed(1)
    routing = gate(2, Drop(0.5)).train()(Tokens(x_TD))
    assert routing.expert_N.tolist() == [0, 2, 2, 2]
    assert routing.dropped_N.tolist() == [False, False, True, False]


def test_l_aux_at_perfect_balance_is_1_over_the_square_of_experts() -> None:
    # Four tokens, each with its own favourite, probabilities turned round: f = P = 1/4.
    logits = [[2.0, 1.0, 0.0, 0.0]]
    x_TD = torch.cat([torch.tensor(logits, dtype=torch.float64).roll(e, 1) for e in range(4)])
    routing, drawn = seeded(gate(4).train(), x_TD, seed=0)
    assert balance_loss(first_choices(routing)).item() == pytest.approx(1, rel=1e-12)
    expected = algorithm_1(x_TD.tolist(), drawn, "1")
    assert expected.l_aux == pytest.approx(1 / 4**2, rel=1e-12)


def test_the_loss_counts_first_choices_unless_told_otherwise() -> None:
    x_TD = torch.randn(30, 5)
    for choices, counted in ((None, first_choices), ("first", first_choices), ("all", None)):
        balance = {"choices": choices, "loss": 1.0}
        output = MoE(5, config(balance=balance))(x_TD)
        routing = output.routing if counted is None else counted(output.routing)
        assert torch.equal(output.losses["balance"], balance_loss(routing))
    # The others count every choice.
    other = MoE(5, config(router={"kind": "topk_softmax"}, balance={"loss": 1.0}))(x_TD)
    assert torch.equal(other.losses["balance"], balance_loss(other.routing))


def test_default_losses() -> None:
    balancer = MoE(5, config()).balancer
    assert (balancer.weights, balancer.choices) == ({"balance": 0.01}, "first")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_finite_differences(rule: Capacity, training: bool) -> None:
    torch.manual_seed(4)
    made = gate(4, width=3).train(training)
    x_TD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])

    def run(x_TD: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        routing = torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T), rule)
        )
        return routing.weight_N, balance_loss(first_choices(routing))

    assert torch.autograd.gradcheck(run, (x_TD, made.weight.detach().requires_grad_()))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_capacity_rule_keeps_its_promise(rule: Capacity) -> None:
    torch.manual_seed(0)
    layer = MoE(5, config(num_experts=4)).double()
    x = torch.randn(2, 20, 5, dtype=torch.float64)
    outputs = []
    for given_rule in (rule, Dropless()):
        torch.manual_seed(1)
        outputs.append(layer(x, capacity=given_rule))
    limited, free = outputs
    # The draws are the same, so the same rows are given up; there are some of either kind.
    assert torch.equal(limited.routing.chosen_N, free.routing.chosen_N)
    given_up_N = free.routing.chosen_N == 4
    assert 0 < given_up_N.sum() < 40
    assert (limited.routing.expert_N[given_up_N] == 4).all()
    assert (limited.routing.weight_N[given_up_N] == 0).all()
    if isinstance(rule, Wave):
        torch.testing.assert_close(limited.hidden, free.hidden)
    # 0.7 * 40 / 4 = 7 rows of a sequence; over both, 14.
    if isinstance(rule, Drop | Reroute):
        assert computed_load(limited.routing).max() <= 14


def test_padding_counts_nowhere() -> None:
    x_TD = torch.cat([X_1D, X_1D.flip(1)])
    made = gate(rule=Drop(1.5, "group")).eval()
    padded = made(Tokens(x_TD, torch.tensor([False, True])))
    alone = made(Tokens(x_TD[1:]))
    assert padded.expert_N.tolist() == [3, 3, *alone.expert_N.tolist()]
    assert padded.weight_N.tolist() == pytest.approx([0, 0, *alone.weight_N.tolist()])
    assert torch.equal(load(padded), load(alone))
    assert torch.equal(balance_loss(first_choices(padded)), balance_loss(first_choices(alone)))


def test_no_tokens() -> None:
    output = MoE(5, config())(torch.empty(0, 5))
    assert output.hidden.shape == (0, 5)
    # Balance loss of 0.01: a load without a row counts as even, 1.
    assert output.loss.item() == pytest.approx(0.01)


@pytest.mark.parametrize("top_k", [1, 3])
def test_it_takes_two_experts(top_k: int) -> None:
    with pytest.raises(ConfigError, match=rf"top_k={top_k} under router kind=gshard.*set top_k=2"):
        config(top_k=top_k)


def test_the_loss_of_first_choices_refuses_a_global_load() -> None:
    with pytest.raises(ConfigError, match=r"choices=first.*global_batch.*balance\.choices=all"):
        config(balance={"scope": "global_batch"})
    config(balance={"scope": "global_batch", "choices": "all"})


def hierarchical(groups: int, top_k: int, outer_top_k: int, **parts: Any) -> Hierarchical:
    softmax = {"kind": "softmax_topk", "renormalise": False}
    router = {
        "kind": "hierarchical",
        "groups": groups,
        "outer_top_k": outer_top_k,
        "outer": softmax,
        "inner": softmax,
        **parts,
    }
    made = config(num_experts=6, top_k=top_k, router=router).router
    built = made.build(RouterShape(3, 6, top_k), Dropless()).double().train()
    assert isinstance(built, Hierarchical)
    return built


def test_whoever_gives_up_a_group_gives_up_all_its_experts() -> None:
    made = hierarchical(groups=3, top_k=4, outer_top_k=2, outer={"kind": "gshard"})
    x_TD = torch.randn(40, 3, dtype=torch.float64)
    torch.manual_seed(2)
    routing = made(Tokens(x_TD))
    torch.manual_seed(2)
    assert isinstance(made.outer, TokenChoiceRouter)
    outer = made.outer.choose(x_TD)
    assert outer.abandoned_TK is not None
    second_T = outer.abandoned_TK[:, 1]
    assert 0 < second_T.sum() < 40
    chosen_TK = routing.chosen_N.view(-1, 4)
    assert torch.equal(chosen_TK[:, 2:] == 6, second_T[:, None].expand(-1, 2))
    assert (chosen_TK[:, :2] < 6).all()
    assert (routing.weight_N.view(-1, 4)[second_T, 2:] == 0).all()


def test_inside_groups_it_is_the_flat_router() -> None:
    made = hierarchical(groups=1, top_k=2, outer_top_k=1, inner={"kind": "gshard"})
    flat = gate(6, width=3).train()
    made.inner.load_state_dict(flat.state_dict())
    x_TD = torch.randn(30, 3, dtype=torch.float64)
    found, expected = (seeded(each, x_TD, 3)[0] for each in (made, flat))
    assert torch.equal(found.chosen_N, expected.chosen_N)
    assert (found.chosen_N == 6).any()
    torch.testing.assert_close(found.weight_N, expected.weight_N)
