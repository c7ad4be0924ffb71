"""BASE's balanced assignment, and Sinkhorn's plan. T tokens, D width, E experts.

By hand: an identity gate, so that x is the logits.
"""

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Drop, Dropless, MoE, MoEConfig
from mixtura.moe.load import computed_load, dropped_share, load
from mixtura.moe.routers import LinearRouter
from mixtura.moe.routers.assignment import column_potentials
from mixtura.moe.tokens import Tokens

# All like expert 0 best; tokens 0 and 1 lose least by yielding, 1 and 2 of 8 and 7.
WISHES = [[8.0, 7.0], [7.0, 5.0], [6.0, 3.0], [5.0, 1.0]]


def layer_of(
    kind: str, num_experts: int = 2, top_k: int = 1, width: int | None = None, **fields: Any
) -> MoE:
    torch.manual_seed(0)
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    router = {"kind": kind, **fields.pop("router", {})}
    config = MoEConfig.parse({**tree, "router": router, **fields})
    layer = MoE(num_experts if width is None else width, config).double()
    if width is None:
        with torch.no_grad():
            layer.router.get_parameter("weight").copy_(torch.eye(num_experts))
    return layer


def gate(kind: str, num_experts: int = 2, top_k: int = 1, **fields: Any) -> LinearRouter:
    router = layer_of(kind, num_experts, top_k, **fields).router
    assert isinstance(router, LinearRouter)
    return router


def of(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def test_base_by_hand() -> None:
    # Evenly, 7 + 5 + 6 + 5 = 23 is the best total; 8 + 7 + 3 + 1 would be 19.
    routing = gate("base")(Tokens(of(WISHES)))
    assert routing.expert_N.tolist() == [1, 1, 0, 0]
    expected = [sigmoid(logit) for logit in (7, 5, 6, 5)]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)
    # What the gate wanted is what load shows.
    assert routing.chosen_N.tolist() == [0, 0, 0, 0]
    assert load(routing).tolist() == [4, 0]
    assert computed_load(routing).tolist() == [2, 2]
    assert dropped_share(routing).item() == 0


def test_base_is_greedy_in_evaluation() -> None:
    routing = gate("base").eval()(Tokens(of(WISHES)))
    assert routing.expert_N.tolist() == [0, 0, 0, 0]
    expected = [sigmoid(logit) for logit in (8, 7, 6, 5)]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["base", "sinkhorn"])
def test_the_balance_leaks_in_training_alone(kind: str) -> None:
    # Two later tokens that lose 10 by yielding expert 0 push the first two out of it.
    weak = [[2.0, 1.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    strong = [*weak[:2], [10.0, 0.0], [10.0, 0.0]]
    made = gate(kind, router={"epsilon": 0.001} if kind == "base" else {"temperature": 0.5})
    experts = [made(Tokens(of(rows))).expert_N.tolist()[0] for rows in (weak, strong)]
    assert experts == [0, 1]
    greedy = [made.eval()(Tokens(of(rows))).expert_N.tolist()[0] for rows in (weak, strong)]
    assert greedy == [0, 0]


def test_base_balances_what_is_no_padding() -> None:
    padded = of([*WISHES[:2], [99.0, 0.0], *WISHES[2:], [0.0, 99.0]])
    valid_T = torch.tensor([True, True, False, True, True, False])
    routing = gate("base")(Tokens(padded, valid_T, 2))
    assert routing.expert_N.tolist() == [1, 1, 2, 0, 0, 2]
    assert routing.weight_N[[2, 5]].tolist() == [0, 0]


@pytest.mark.parametrize("tokens", [64, 61, 3])
def test_base_is_even_whatever_the_batch(tokens: int) -> None:
    layer = layer_of("base", 8, width=5)
    routing = layer(torch.randn(tokens, 5, dtype=torch.float64) + 2).routing
    computed_E = computed_load(routing)
    assert computed_E.sum() == tokens
    assert computed_E.max() - computed_E.min() <= 1


def test_a_rule_that_stands_in_for_the_assignment() -> None:
    # Generation is dropless and greedy; ceil(0.5 * 4 / 2) = 1 row an expert leaves token 0 alone.
    made = gate("base")
    assert made(Tokens(of(WISHES)), Dropless()).expert_N.tolist() == [0, 0, 0, 0]
    assert made(Tokens(of(WISHES)), Drop(0.5)).expert_N.tolist() == [0, 2, 2, 2]


def test_potentials_by_hand() -> None:
    # Rows (3/4, 1/4) twice. Columns sum to 3/2 and 1/2, to be 1 each: v = (2/3, 2), and (1/2, 1/2)
    # is even: the first iteration is the last that changes anything.
    log_TE = of([[3 / 4, 1 / 4]] * 2).log()
    for iterations in (1, 2, 5):
        potentials = column_potentials(log_TE, None, iterations)
        assert potentials.tolist() == pytest.approx([log(2 / 3), log(2)], abs=1e-12)


def test_a_plan_has_even_sums() -> None:
    torch.manual_seed(0)
    log_TE = 2 * torch.randn(40, 8, dtype=torch.float64) + torch.randn(8)
    plan_TE = (log_TE + column_potentials(log_TE, None, 60)).softmax(-1)
    assert plan_TE.sum(0).tolist() == pytest.approx([40 / 8] * 8, rel=1e-9)
    # 30 of the 40 are tokens.
    valid_T = torch.arange(40) < 30
    plan_TE = (log_TE + column_potentials(log_TE, valid_T, 60)).softmax(-1)
    assert plan_TE[:30].sum(0).tolist() == pytest.approx([30 / 8] * 8, rel=1e-9)


def test_a_tolerance_ends_the_iteration() -> None:
    torch.manual_seed(0)
    log_TE = 2 * torch.randn(40, 8, dtype=torch.float64) + torch.randn(8)
    loose, exact = (column_potentials(log_TE, None, 60, tolerance) for tolerance in (0.1, None))
    plan_E = (log_TE + loose).softmax(-1).sum(0) / 5
    assert 1e-3 < (plan_E - 1).abs().max() <= 0.1
    assert not torch.equal(loose, exact)


def test_large_logits_stay_finite() -> None:
    # exp(800) is beyond float64; in the logarithm nothing is.
    log_TE = of([[800.0, 0.0], [0.0, -800.0]])
    assert column_potentials(log_TE, None, 20).isfinite().all()


@pytest.mark.parametrize("weight", ["softmax", "sigmoid"])
def test_sinkhorn_by_hand(weight: str) -> None:
    # Rows of odds 9:1 and 3:1 towards expert 0. v makes sums of 1: the odds become 9 c and 3 c with
    # 9c / (1 + 9c) + 3c / (1 + 3c) = 1, c = 1 / sqrt(27): 1.73 and 0.58. Token 1 yields.
    made = gate("sinkhorn", router={"weight": weight, "iterations": 60})
    routing = made(Tokens(of([[log(9), 0.0], [log(3), 0.0]])))
    assert routing.expert_N.tolist() == [0, 1]
    assert routing.chosen_N.tolist() == [0, 0]
    # Of the raw logits: 9/10 and 1/4, or sigmoid(ln 9) = 9/10 and sigmoid(0) = 1/2.
    expected = [9 / 10, 1 / 4] if weight == "softmax" else [9 / 10, 1 / 2]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-12)
    greedy = made.eval()(Tokens(of([[log(9), 0.0], [log(3), 0.0]])))
    assert greedy.expert_N.tolist() == [0, 0]


def test_sinkhorn_takes_several_experts_more_evenly_than_greed() -> None:
    layer = layer_of("sinkhorn", 8, 2, width=6)
    common_D = torch.randn(6, dtype=torch.float64)
    routing = layer(torch.randn(512, 6, dtype=torch.float64) + common_D).routing
    rows = routing.expert_N.view(-1, 2)
    assert (rows[:, 0] != rows[:, 1]).all()
    # 512 * 2 / 8 = 128 rows is even.
    assert load(routing).max() > 1.5 * 128
    assert computed_load(routing).max() < 1.3 * 128
    wished = routing.chosen_N.view(-1, 2)
    assert routing.probs_TE is not None
    assert torch.equal(wished, routing.probs_TE.topk(2).indices)


@pytest.mark.parametrize("policy", ["drop", "reroute", "wave"])
def test_a_policy_bounds_the_plan(policy: str) -> None:
    # 96 tokens, 1 expert each of 4, factor 1: at most 24 rows an expert, or in a pass of it.
    layer = layer_of("sinkhorn", 4, width=6, capacity={"policy": policy, "factor": 1.0})
    routing = layer(torch.randn(96, 6, dtype=torch.float64) + 1).routing
    if policy != "wave":
        assert computed_load(routing).max() <= 24
        return
    assert computed_load(routing).sum() == 96
    assert routing.wave_N is not None
    for wave in range(int(routing.wave_N.max()) + 1):
        assert routing.expert_N[routing.wave_N == wave].bincount().max() <= 24


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "top_k", "router"),
    [("base", 1, {}), ("sinkhorn", 2, {}), ("sinkhorn", 2, {"weight": "sigmoid"})],
)
def test_gradients_equal_finite_differences(
    kind: str, top_k: int, router: dict[str, Any], training: bool
) -> None:
    made = gate(kind, 4, top_k, router=router).train(training)
    torch.manual_seed(4)
    x_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])

    def weights(x_TD: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T),)
        ).weight_N

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(weights, (x_TD, weight))


def test_neither_has_a_loss_unless_asked() -> None:
    x_TD = torch.randn(8, 2, dtype=torch.float64)
    assert layer_of("base")(x_TD).losses == {}
    assert layer_of("sinkhorn")(x_TD).losses == {}
    assert set(layer_of("base", balance={"loss": 0.1})(x_TD).losses) == {"balance"}


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("base", {"top_k": 2}, "top_k=2 under router kind=base.*kind=sinkhorn"),
        ("base", {"router": {"epsilon": 0.0}}, "epsilon"),
        ("base", {"capacity": {"policy": "drop"}}, "policy=drop under router kind=base.*sinkhorn"),
        ("sinkhorn", {"router": {"temperature": 0.0}}, "temperature"),
        ("sinkhorn", {"router": {"iterations": 0}}, "iterations"),
        ("sinkhorn", {"router": {"tolerance": float("nan")}}, "tolerance"),
    ],
)
def test_what_is_refused(kind: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layer_of(kind, **fields)
