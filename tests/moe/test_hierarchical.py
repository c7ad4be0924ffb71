"""A router of routers. T tokens, D width, G groups of S experts, K experts per token."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Dropless, MoE, MoEConfig, end_step
from mixtura.moe.load import importance, load
from mixtura.moe.routers import Hierarchical, LinearRouter, RouterShape
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

SOFTMAX = {"kind": "softmax_topk", "renormalise": False}
FLAT = [
    SOFTMAX,
    {"kind": "softmax_topk"},
    {"kind": "topk_softmax"},
    {"kind": "sigmoid_topk", "scale": 2.5},
    {"kind": "noisy_topk"},
]


def config(
    num_experts: int, top_k: int, groups: int, outer_top_k: int = 1, **parts: dict[str, Any]
) -> MoEConfig:
    router = {
        "kind": "hierarchical",
        "groups": groups,
        "outer_top_k": outer_top_k,
        "outer": SOFTMAX,
        "inner": SOFTMAX,
        **parts,
    }
    return MoEConfig.parse(
        {"num_experts": num_experts, "top_k": top_k, "expert_width": 4, "router": router}
    )


def build(of: MoEConfig, width: int = 3) -> Hierarchical:
    shape = RouterShape(width, of.num_experts, of.top_k)
    made = of.router.build(shape, Dropless()).double()
    assert isinstance(made, Hierarchical)
    return made


def gates(made: Hierarchical) -> tuple[LinearRouter, LinearRouter]:
    assert isinstance(made.outer, LinearRouter)
    assert isinstance(made.inner, LinearRouter)
    return made.outer, made.inner


def test_choice_and_weights_by_hand() -> None:
    # Two groups of two. Outer logits ln 3 and ln 1: group 0 with 3/4. Its inner logits ln 1 and
    # ln 4: expert 1 with 4/5, so weight 3/4 * 4/5 = 3/5. Group 1's gate is not asked.
    made = build(config(4, 1, groups=2)).eval()
    outer, inner = gates(made)
    with torch.no_grad():
        outer.weight.copy_(torch.tensor([[3.0], [1.0]]).log() * torch.tensor([1.0, 0, 0]))
        inner.weight.copy_(
            torch.tensor([[1.0], [4.0], [9.0], [1.0]]).log() * torch.tensor([1.0, 0, 0])
        )
    routing = made(Tokens(torch.tensor([[1.0, 0, 0]], dtype=torch.float64)))
    assert routing.chosen_N.tolist() == [1]
    assert routing.weight_N.tolist() == pytest.approx([3 / 5], rel=1e-6)


def test_both_groups_and_both_experts_by_hand() -> None:
    # Groups 1 (ln 3) and 0 (ln 1), weights 3/4 and 1/4; inside, 2/3 and 1/3 in group 1 (expert 3
    # first), 4/5 and 1/5 in group 0 (expert 0 first). Rows: by group, then by expert in it.
    made = build(config(4, 4, groups=2, outer_top_k=2)).eval()
    outer, inner = gates(made)
    with torch.no_grad():
        outer.weight.copy_(torch.tensor([[1.0], [3.0]]).log() * torch.tensor([1.0, 0, 0]))
        inner.weight.copy_(
            torch.tensor([[4.0], [1.0], [1.0], [2.0]]).log() * torch.tensor([1.0, 0, 0])
        )
    routing = made(Tokens(torch.tensor([[1.0, 0, 0]], dtype=torch.float64)))
    assert routing.chosen_N.tolist() == [3, 2, 0, 1]
    expected = [3 / 4 * 2 / 3, 3 / 4 * 1 / 3, 1 / 4 * 4 / 5, 1 / 4 * 1 / 5]
    assert routing.weight_N.tolist() == pytest.approx(expected, rel=1e-6)
    assert (routing.top_k, routing.token_N.tolist()) == (4, [0, 0, 0, 0])


def flat_twin(router: dict[str, Any], top_k: int, weight_ED: Tensor) -> LinearRouter:
    of = MoEConfig.parse({"num_experts": 6, "top_k": top_k, "expert_width": 4, "router": router})
    made = of.router.build(RouterShape(3, 6, top_k), Dropless()).double()
    assert isinstance(made, LinearRouter)
    with torch.no_grad():
        made.weight.copy_(weight_ED)
    return made


def assert_same(found: Routing, expected: Routing) -> None:
    assert torch.equal(found.chosen_N, expected.chosen_N)
    assert torch.equal(found.expert_N, expected.expert_N)
    torch.testing.assert_close(found.weight_N, expected.weight_N)


@pytest.mark.parametrize("router", FLAT)
@pytest.mark.parametrize("training", [False, True])
def test_one_group_is_the_flat_router(router: dict[str, Any], training: bool) -> None:
    weight_ED = torch.randn(6, 3, dtype=torch.float64)
    made = build(config(6, 2, groups=1, inner=router)).train(training)
    _, inner = gates(made)
    with torch.no_grad():
        inner.weight.copy_(weight_ED)
    flat = flat_twin(router, 2, weight_ED).train(training)
    x_TD = torch.randn(20, 3, dtype=torch.float64)
    routings: list[Routing] = []
    for each in (made, flat):
        torch.manual_seed(3)
        routings.append(each(Tokens(x_TD)))
    assert_same(*routings)
    if training and router["kind"] == "noisy_topk":
        # Importance_H and Load_H are then Importance and Load. (The outer gate has no noise here.)
        torch.testing.assert_close(*map(importance, routings))


@pytest.mark.parametrize("router", FLAT)
def test_groups_of_one_expert_are_the_flat_router(router: dict[str, Any]) -> None:
    weight_ED = torch.randn(6, 3, dtype=torch.float64)
    made = build(config(6, 2, groups=6, outer_top_k=2, outer=router)).eval()
    outer, _ = gates(made)
    with torch.no_grad():
        outer.weight.copy_(weight_ED)
    x_TD = torch.randn(20, 3, dtype=torch.float64)
    assert_same(made(Tokens(x_TD)), flat_twin(router, 2, weight_ED).eval()(Tokens(x_TD)))


def test_one_group_and_groups_of_one_give_the_flat_layers_output_and_gradients() -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    flat = MoEConfig.parse({"num_experts": 6, "top_k": 2, "expert_width": 4, "router": SOFTMAX})
    results = []
    weight_ED = torch.randn(6, 3, dtype=torch.float64)
    for of, gate in (
        (flat, "router.weight"),
        (config(6, 2, groups=1), "router.inner.weight"),
        (config(6, 2, groups=6, outer_top_k=2), "router.outer.weight"),
    ):
        torch.manual_seed(0)
        layer = MoE(3, of).double()
        state = dict(layer.named_parameters())
        with torch.no_grad():
            state[gate].copy_(weight_ED)
            state["experts.w_in"].normal_(generator=torch.Generator().manual_seed(1))
            state["experts.w_out"].normal_(generator=torch.Generator().manual_seed(2))
        hidden = layer(x).hidden
        wanted = (x, state[gate], state["experts.w_in"], state["experts.w_out"])
        results.append([hidden, *torch.autograd.grad(hidden.square().sum(), wanted)])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected)


def naive(made: Hierarchical, x_TD: Tensor) -> Tensor:
    """gate_TE: sum over chosen groups and experts of G_outer(x)_i G_i(x)_j, group by group."""
    outer, inner = gates(made)
    groups = made.config.groups
    outer_TG = torch.zeros(len(x_TD), groups, dtype=x_TD.dtype)
    best = (x_TD @ outer.weight.T).softmax(-1).topk(made.config.outer_top_k)
    outer_TG.scatter_(1, best.indices, best.values)
    parts = []
    for group, weight_SD in enumerate(inner.weight.view(groups, -1, x_TD.shape[1])):
        best = (x_TD @ weight_SD.T).softmax(-1).topk(inner.top_k)
        inside_TS = torch.zeros(len(x_TD), len(weight_SD), dtype=x_TD.dtype)
        inside_TS.scatter_(1, best.indices, best.values)
        parts.append(outer_TG[:, group, None] * inside_TS)
    return torch.cat(parts, 1)


@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 4),
    size=st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_it_equals_the_sum_over_groups(
    seed: int, groups: int, size: int, data: st.DataObject
) -> None:
    outer_top_k = data.draw(st.integers(1, groups))
    inner_top_k = data.draw(st.integers(1, size))
    torch.manual_seed(seed)
    of = config(groups * size, outer_top_k * inner_top_k, groups, outer_top_k)
    made = build(of).eval()
    x_TD = torch.randn(9, 3, dtype=torch.float64)
    routing = made(Tokens(x_TD))
    found_TE = torch.zeros(9, groups * size, dtype=torch.float64)
    found_TE[routing.token_N, routing.chosen_N] = routing.weight_N
    torch.testing.assert_close(found_TE, naive(made, x_TD))


def test_any_depth_by_nesting() -> None:
    # Three levels of two: a token that takes all of everything weighs the product of three gates.
    nested = {
        "kind": "hierarchical",
        "groups": 2,
        "outer_top_k": 2,
        "outer": SOFTMAX,
        "inner": SOFTMAX,
    }
    made = build(config(8, 8, groups=2, outer_top_k=2, inner=nested)).eval()
    assert isinstance(made.inner, Hierarchical)
    top, (middle, bottom) = made.outer, gates(made.inner)
    assert isinstance(top, LinearRouter)
    x_D = torch.randn(3, dtype=torch.float64)
    routing = made(Tokens(x_D[None]))
    top_2 = (top.weight @ x_D).softmax(-1)
    middle_22 = (middle.weight @ x_D).view(2, 2).softmax(-1)
    bottom_222 = (bottom.weight @ x_D).view(2, 2, 2).softmax(-1)
    expected_E = (top_2[:, None, None] * middle_22[:, :, None] * bottom_222).view(-1)
    assert sorted(routing.chosen_N.tolist()) == list(range(8))
    torch.testing.assert_close(routing.weight_N, expected_E[routing.chosen_N])
    # A token asks the one gate of the first level, both of the second and all four of the third.
    assert [level.banks for level in routing.levels] == [1, 2, 4]
    for level, expected in zip(routing.levels, (top_2, middle_22, bottom_222), strict=True):
        gate_R = torch.zeros_like(level.token_R) if level.bank_R is None else level.bank_R
        assert sorted(gate_R.tolist()) == list(range(level.banks))
        torch.testing.assert_close(level.probs_RS, expected.view(level.banks, 2)[gate_R])


def test_load_h_by_hand() -> None:
    noisy = {"kind": "noisy_topk"}
    made = build(config(8, 4, groups=4, outer_top_k=2, outer=noisy, inner=noisy))
    with torch.no_grad():
        for gate in gates(made):
            gate.weight.normal_()
    x_TD = torch.randn(50, 3, dtype=torch.float64)
    choice = made.choose(x_TD)
    # Redo it with the same draws: the outer gate, then the inner one on the rows it was asked for.
    torch.manual_seed(9)
    outer = made.outer.choose(x_TD)
    group_R = outer.chosen_TK.reshape(-1)
    inner = made.inner.choose(x_TD.repeat_interleave(2, 0), bank_R=group_R)
    torch.manual_seed(9)
    choice = made.choose(x_TD)
    assert outer.load_GE is not None
    assert inner.load_GE is not None
    assert choice.load_GE is not None
    for group in range(4):
        # |X^(i)|: tokens that chose group i.
        tokens = int((group_R == group).sum())
        expected_S = outer.load_GE[0, group] * inner.load_GE[group] / tokens
        torch.testing.assert_close(choice.load_GE[0, 2 * group : 2 * group + 2], expected_S)


def test_importance_h_is_the_sum_of_products() -> None:
    made = build(config(6, 2, groups=3)).train()
    x_TD = torch.randn(30, 3, dtype=torch.float64)
    torch.testing.assert_close(importance(made(Tokens(x_TD))), naive(made, x_TD).sum(0))


def test_biases_of_both_levels_move_by_their_own_load() -> None:
    biased = {"kind": "sigmoid_topk", "renormalise": False}
    layer = MoE(3, config(4, 1, groups=2, outer=biased, inner=biased))
    router = layer.router
    assert isinstance(router, Hierarchical)
    with torch.no_grad():
        for gate in gates(router):
            gate.weight.zero_()
            assert gate.bias is not None
        # All go to group 1 and there to expert 3 (the second of group 1).
        outer, inner = gates(router)
        assert outer.bias is not None
        assert inner.bias is not None
        outer.bias.copy_(torch.tensor([0.0, 1.0]))
        inner.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    layer(torch.randn(5, 3))
    assert end_step(layer)[0].tolist() == [0, 0, 0, 5]
    rate = 0.001
    # Group loads 0 and 5; in group 0 all are equal and stay, in group 1 loads are 0 and 5.
    assert outer.bias.tolist() == pytest.approx([rate, 1 - rate])
    assert inner.bias.tolist() == pytest.approx([0, 0, rate, 1 - rate])


def test_padding_counts_nowhere() -> None:
    layer = MoE(3, config(6, 2, groups=3, outer_top_k=2)).double()
    x_TD = torch.randn(1, 8, 3, dtype=torch.float64)
    valid = torch.arange(8)[None] < 5
    padded, short = layer(x_TD, valid), layer(x_TD[:, :5])
    torch.testing.assert_close(padded.hidden[:, :5], short.hidden)
    assert load(padded.routing).tolist() == load(short.routing).tolist()
    torch.testing.assert_close(padded.loss, short.loss)


def test_gradients_against_finite_differences() -> None:
    made = build(config(6, 2, groups=3, outer_top_k=2))
    x_TD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def results(x_TD: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        names = [name for name, _ in made.named_parameters()]
        state = dict(zip(names, parameters, strict=True))
        routing = torch.func.functional_call(made, state, (Tokens(x_TD),))
        return routing.weight_N, *(level.probs_RS for level in routing.levels)

    inputs = [p.detach().clone().requires_grad_() for p in made.parameters()]
    assert torch.autograd.gradcheck(results, (x_TD, *inputs))


def test_the_ledger_is_the_built_routers() -> None:
    noisy = {"kind": "noisy_topk"}
    of = config(8, 4, groups=4, outer_top_k=2, outer=noisy, inner=noisy)
    layer = MoE(3, of)
    built = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert {w.name: w.shape for w in of.weights(3)} == built
    # Of four groups' gates a token asks two.
    active = {w.name: w.active_parameters for w in of.weights(3)}
    assert active["router.outer.weight"] == 4 * 3
    assert active["router.inner.noise_weight"] == 8 * 3 // 2


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"num_experts": 5, "groups": 2, "top_k": 1}, ["num_experts=5", "router.groups=2"]),
        ({"num_experts": 4, "groups": 2, "top_k": 3, "outer_top_k": 2}, ["top_k=3", "multiple"]),
        ({"num_experts": 4, "groups": 2, "top_k": 3, "outer_top_k": 3}, ["outer_top_k=3", "1..2"]),
        ({"num_experts": 4, "groups": 2, "top_k": 3}, ["top_k / outer_top_k=3", "1..2"]),
    ],
)
def test_a_shape_that_does_not_divide_is_refused(tree: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**tree)
    for word in words:
        assert word in str(caught.value)


def test_rerouting_is_refused_with_the_reason() -> None:
    of = config(6, 2, groups=3)
    tree = {**of.model_dump(), "capacity": {"policy": "reroute"}}
    with pytest.raises(ConfigError, match=r"policy=reroute under router kind=hierarchical.*drop"):
        MoEConfig.parse(tree)
