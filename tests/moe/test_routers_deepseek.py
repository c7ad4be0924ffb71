"""DeepSeek's grouped gates. T tokens, D width, E experts, K experts per token, G groups.

By hand: an identity gate and x = (ln 4, ln 1, ln 3, ln 2), so that softmax gives 4/10, 1/10, 3/10,
2/10, and sigmoid(ln a) = a / (1 + a) gives 4/5, 1/2, 3/4, 2/3. Groups {0, 1} and {2, 3}.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.moe import (
    Drop,
    Dropless,
    MoE,
    MoEConfig,
    Reroute,
    Wave,
    balance_loss,
    communication_loss,
    device_balance_loss,
    end_step,
)
from mixtura.moe.capacity import Capacity
from mixtura.moe.load import computed_load
from mixtura.moe.routers import DeepSeekV2, DeepSeekV3, LinearRouter, RouterShape
from mixtura.moe.tokens import Tokens

KINDS = ["deepseek_v2", "deepseek_v3"]
RULES: dict[str, Capacity] = {
    "dropless": Dropless(),
    "drop": Drop(0.7),
    "reroute": Reroute(0.7),
    "wave": Wave(0.7),
}

X_1D = torch.tensor([[4.0, 1.0, 3.0, 2.0]], dtype=torch.float64).log()


def config(kind: str, num_experts: int = 4, top_k: int = 2, **router: Any) -> MoEConfig:
    router = {"kind": kind, "groups": 2, "groups_kept": 1, **router}
    return MoEConfig.parse(
        {"num_experts": num_experts, "top_k": top_k, "expert_width": 4, "router": router}
    )


def gate(
    kind: str, num_experts: int = 4, top_k: int = 2, width: int | None = None, **router: Any
) -> LinearRouter:
    """In float64; where no width is given the gate is the identity, so that x is the logits."""
    of = config(kind, num_experts, top_k, **router).router
    made = of.build(RouterShape(width or num_experts, num_experts, top_k), Dropless()).double()
    assert isinstance(made, DeepSeekV2 | DeepSeekV3)
    if width is None:
        with torch.no_grad():
            made.weight.copy_(torch.eye(num_experts))
    return made


@pytest.mark.parametrize(
    ("kind", "options", "experts", "weights"),
    [
        # The best expert, 4/10, is in group 0, though group 1 has the larger sum.
        ("deepseek_v2", {}, [0, 1], [4 / 10, 1 / 10]),
        ("deepseek_v2", {"scale": 16.0}, [0, 1], [64 / 10, 16 / 10]),
        ("deepseek_v2", {"renormalise": True}, [0, 1], [4 / 5, 1 / 5]),
        ("deepseek_v2", {"groups_kept": 2}, [0, 2], [4 / 10, 3 / 10]),
        # 4/5 + 1/2 = 1.3 is less than 3/4 + 2/3 = 17/12. Weights over 17/12: 9/17 and 8/17.
        ("deepseek_v3", {}, [2, 3], [2.5 * 9 / 17, 2.5 * 8 / 17]),
        # Ranked by its best alone, group 0 wins. Weights over 4/5 + 1/2 = 13/10.
        ("deepseek_v3", {"group_top": 1, "scale": 1.0}, [0, 1], [8 / 13, 5 / 13]),
        ("deepseek_v3", {"renormalise": False, "scale": 2.0}, [2, 3], [6 / 4, 4 / 3]),
        # Over 4/5 + 3/4 = 31/20.
        ("deepseek_v3", {"groups_kept": 2, "scale": 1.0}, [0, 2], [16 / 31, 15 / 31]),
    ],
)
def test_choice_and_weights_by_hand(
    kind: str, options: dict[str, Any], experts: list[int], weights: list[float]
) -> None:
    routing = gate(kind, **options)(Tokens(X_1D))
    assert routing.chosen_N.tolist() == experts
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)
    assert (routing.num_groups, routing.groups_kept) == (2, options.get("groups_kept", 1))


def test_a_bias_chooses_groups_and_experts_and_never_weighs() -> None:
    # Expert 1 at 1/2 + 1: group 0 has 1.5 + 0.8 and wins. Weights from 1/2 and 4/5, over 13/10.
    made = gate("deepseek_v3", scale=1.0)
    assert made.bias is not None
    made.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    routing = made(Tokens(X_1D))
    assert routing.chosen_N.tolist() == [1, 0]
    assert routing.weight_N.tolist() == pytest.approx([5 / 13, 8 / 13], rel=1e-12)


def test_probabilities_by_hand() -> None:
    # The sigmoids 4/5, 1/2, 3/4, 2/3 sum to 163/60.
    routing = gate("deepseek_v3")(Tokens(X_1D))
    assert routing.probs_TE is not None
    expected = [48 / 163, 30 / 163, 45 / 163, 40 / 163]
    assert routing.probs_TE[0].tolist() == pytest.approx(expected, rel=1e-12)


def best(scores: Mapping[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda each: scores[each], reverse=True)[:count]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    return {
        "groups": groups,
        "size": size,
        "groups_kept": kept,
        "group_top": draw(st.integers(1, size)),
        "top_k": draw(st.integers(1, kept * size)),
        "seed": draw(st.integers(0, 9999)),
    }


@given(shapes(), st.sampled_from(KINDS))
@settings(max_examples=80, deadline=None)
def test_it_is_the_plain_rule(of: dict[str, int], kind: str) -> None:
    """Keep the best groups, then the best experts in them, token by token."""
    groups, size, top_k = of["groups"], of["size"], of["top_k"]
    options: dict[str, Any] = {"groups": groups, "groups_kept": of["groups_kept"]}
    top = 1
    if kind == "deepseek_v3":
        top = options["group_top"] = of["group_top"]
    made = gate(kind, groups * size, top_k, renormalise=False, scale=1.0, **options)
    generator = torch.Generator().manual_seed(of["seed"])
    x_TD = torch.randn(5, groups * size, dtype=torch.float64, generator=generator)
    score_TE = x_TD.softmax(-1) if kind == "deepseek_v2" else x_TD.sigmoid()
    routing = made(Tokens(x_TD))
    for t, row in enumerate(score_TE.tolist()):
        score = dict(enumerate(row))
        by_group = [row[g * size : (g + 1) * size] for g in range(groups)]
        rank = {g: sum(sorted(own, reverse=True)[:top]) for g, own in enumerate(by_group)}
        kept = best(rank, of["groups_kept"])
        chosen = best({e: p for e, p in score.items() if e // size in kept}, top_k)
        assert routing.chosen_N.view(-1, top_k)[t].tolist() == chosen
        weights = routing.weight_N.view(-1, top_k)[t].tolist()
        assert weights == pytest.approx([score[e] for e in chosen], rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "flat"),
    [
        ("deepseek_v2", {"kind": "softmax_topk", "renormalise": False}),
        ("deepseek_v3", {"kind": "sigmoid_topk", "scale": 2.5}),
    ],
)
def test_with_every_group_kept_it_is_the_flat_router(kind: str, flat: dict[str, Any]) -> None:
    made = gate(kind, 12, 3, width=5, groups=4, groups_kept=4)
    tree = {"num_experts": 12, "top_k": 3, "expert_width": 4, "router": flat}
    other = MoEConfig.parse(tree).router.build(RouterShape(5, 12, 3), Dropless()).double()
    other.load_state_dict(made.state_dict())
    x_TD = torch.randn(30, 5, dtype=torch.float64)
    found, expected = made(Tokens(x_TD)), other(Tokens(x_TD))
    assert torch.equal(found.chosen_N, expected.chosen_N)
    torch.testing.assert_close(found.weight_N, expected.weight_N)
    torch.testing.assert_close(balance_loss(found), balance_loss(expected))


def test_a_rerouted_row_stays_in_the_kept_groups() -> None:
    # Capacity ceil(0.5 * 3 * 1 / 4) = 1. All three tokens prefer expert 0, then 1 of its group; the
    # third is lost, though experts 2 and 3 are idle.
    made = gate("deepseek_v2", top_k=1)
    routing = made(Tokens(X_1D.repeat(3, 1)), Reroute(0.5))
    assert routing.chosen_N.tolist() == [0, 0, 0]
    assert routing.expert_N.tolist() == [0, 1, 4]
    # Not renormalised: the weight is that of the expert it came to.
    assert routing.weight_N.tolist() == pytest.approx([4 / 10, 1 / 10, 0], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_capacity_rule_stays_in_the_kept_groups(kind: str, rule: Capacity) -> None:
    torch.manual_seed(0)
    layer = MoE(5, config(kind, 12, 3, groups=4, groups_kept=2)).double()
    x = torch.randn(2, 20, 5, dtype=torch.float64) + torch.linspace(-2, 2, 5)
    limited, free = layer(x, capacity=rule), layer(x, capacity=Dropless())
    chosen_TK = limited.routing.chosen_N.view(-1, 3)
    assert torch.equal(limited.routing.chosen_N, free.routing.chosen_N)
    expert_TK = limited.routing.expert_N.view(-1, 3)
    for chosen, experts in zip(chosen_TK.tolist(), expert_TK.tolist(), strict=True):
        # The kept groups are those of the chosen and at most one more, from which none was.
        wanted = {e // 3 for e in chosen}
        reached = wanted | {e // 3 for e in experts if e < 12}
        assert len(reached) <= 2
    if isinstance(rule, Wave):
        torch.testing.assert_close(limited.hidden, free.hidden)
    if isinstance(rule, Drop | Reroute):
        # 0.7 * 60 / 12 = 3.5, so 4 rows of each of two sequences.
        assert computed_load(limited.routing).max() <= 8
        assert limited.routing.dropped_N.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_equal_finite_differences(kind: str, rule: Capacity) -> None:
    torch.manual_seed(3)
    made = gate(kind, 6, 2, width=3, groups=3, groups_kept=2)
    x_TD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])

    def run(x_TD: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        routing = torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T, 2), rule)
        )
        losses = (balance_loss, device_balance_loss, communication_loss)
        return (routing.weight_N, *(loss(routing) for loss in losses))

    assert torch.autograd.gradcheck(run, (x_TD, made.weight.detach().requires_grad_()))


def test_default_losses_are_the_papers() -> None:
    layers = [MoE(5, config(kind)) for kind in KINDS]
    assert layers[0].balancer.weights == {"balance": 0.003, "device": 0.05, "communication": 0.02}
    assert layers[1].balancer.weights == {"balance": 0.0001}
    assert all(layer.config.balance.bias_rate == 0.001 for layer in layers)


def test_defaults_are_the_released_models() -> None:
    v2, v3 = (
        MoEConfig.parse(
            {"num_experts": 160, "top_k": 6, "expert_width": 4, "router": {"kind": kind}}
        ).router.model_dump()
        for kind in KINDS
    )
    assert (v2["groups"], v2["groups_kept"]) == (8, 3)
    assert (v3["groups"], v3["groups_kept"], v3["group_top"], v3["scale"]) == (8, 4, 2, 2.5)


def test_the_bias_moves_against_the_load() -> None:
    layer = MoE(4, config("deepseek_v3")).double()
    assert isinstance(layer.router, LinearRouter)
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4))
    layer(X_1D.repeat(3, 1))
    end_step(layer)
    # Load 0, 0, 3, 3 around a mean of 1.5.
    assert layer.router.bias is not None
    assert layer.router.bias.tolist() == pytest.approx([0.001, 0.001, -0.001, -0.001])


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_and_one_group(kind: str) -> None:
    output = MoE(5, config(kind))(torch.empty(0, 5))
    assert output.hidden.shape == (0, 5)
    # A load without a row counts as even: each loss is 1 times its weight.
    assert output.routing.expert_N.tolist() == []
    ranked_by = {"group_top": 1} if kind == "deepseek_v3" else {}
    one = gate(kind, 1, 1, groups=1, renormalise=False, **ranked_by)
    assert one(Tokens(torch.zeros(2, 1, dtype=torch.float64))).chosen_N.tolist() == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 5}, r"num_experts=5 must be a multiple of router\.groups=2"),
        ({"groups_kept": 3}, r"router\.groups_kept=3 must lie in 1\.\.2.*lower it"),
        ({"top_k": 3}, r"top_k=3 must lie in 1\.\.2.*groups_kept=1 groups of 2; raise groups_kept"),
        ({"scale": 0}, "scale"),
        ({"groups": 0}, "groups"),
    ],
)
def test_bad_configs_are_refused(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(kind, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_one_renormalised_expert_is_not_trained(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"top_k=1 under router kind=deepseek_v.*no gradient"):
        config(kind, top_k=1, renormalise=True).check_gradient()


def test_a_group_must_hold_what_ranks_it() -> None:
    with pytest.raises(ConfigError, match=r"router\.group_top=3 must lie in 1\.\.2.*lower it"):
        config("deepseek_v3", group_top=3)


def test_a_hierarchical_router_holds_no_grouped_one() -> None:
    parts = {"outer": {"kind": "switch"}, "inner": {"kind": "deepseek_v2"}}
    with pytest.raises(ConfigError, match=r"router\.inner.*deepseek_v2"):
        MoEConfig.parse(
            {
                "num_experts": 4,
                "top_k": 2,
                "expert_width": 4,
                "router": {"kind": "hierarchical", "groups": 2, **parts},
            }
        )


def assert_the_same_choice(found: LinearRouter, x_TD: Tensor, peer: nn.Module, top_k: int) -> None:
    routing = found(x_TD)
    _, weight_TK, expert_TK = peer(x_TD)
    # The peer names its experts in no order.
    expert_TK, order_TK = expert_TK.sort(-1)
    ours_TK, our_order_TK = routing.chosen_N.view(-1, top_k).sort(-1)
    assert torch.equal(ours_TK, expert_TK)
    torch.testing.assert_close(
        routing.weight_N.view(-1, top_k).gather(1, our_order_TK), weight_TK.gather(1, order_TK)
    )


PEER: dict[str, Any] = {
    "hidden_size": 32,
    "n_routed_experts": 32,
    "n_group": 8,
    "topk_group": 3,
    "num_experts_per_tok": 6,
}


@pytest.mark.slow
def test_parity_with_transformers_deepseek_v3() -> None:
    peers = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    peer = peers.DeepseekV3TopkRouter(
        peers.DeepseekV3Config(**PEER, norm_topk_prob=True, routed_scaling_factor=2.5)
    )
    made = gate("deepseek_v3", 32, 6, width=32, groups=8, groups_kept=3).float()
    assert made.bias is not None
    torch.manual_seed(0)
    with torch.no_grad():
        peer.weight.copy_(made.weight)
        made.bias.normal_(std=0.2)
        peer.e_score_correction_bias.copy_(made.bias)
    assert_the_same_choice(made, torch.randn(200, 32), peer, top_k=6)


@pytest.mark.slow
def test_parity_with_transformers_deepseek_v2() -> None:
    peers = pytest.importorskip("transformers.models.deepseek_v2.modeling_deepseek_v2")
    peer = peers.DeepseekV2TopkRouter(
        peers.DeepseekV2Config(
            **PEER, topk_method="group_limited_greedy", routed_scaling_factor=16.0
        )
    )
    made = gate("deepseek_v2", 32, 6, width=32, groups=8, groups_kept=3, scale=16.0).float()
    with torch.no_grad():
        peer.weight.copy_(made.weight)
    torch.manual_seed(0)
    assert_the_same_choice(made, torch.randn(200, 32), peer, top_k=6)
