"""Balance between devices, by hand. T tokens, E experts, K experts per token, G groups.

The twins are DeepSeek-V2's sums as the paper writes them: f, P, f', P', f'' token by token.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.errors import ConfigError
from mixtura.moe import (
    MoE,
    MoEConfig,
    balance_loss,
    communication_loss,
    device_balance_loss,
    end_micro_step,
)
from mixtura.moe.routers import LinearRouter
from mixtura.moe.routing import Routing

Matrix = list[list[float]]


def routing_of(
    chosen: list[list[int]],
    probs: Matrix,
    groups: int,
    kept: int,
    *,
    valid: list[bool] | None = None,
    sequences: int = 1,
) -> Routing:
    chosen_TK = torch.tensor(chosen)
    probs_TE = torch.tensor(probs, dtype=torch.float64)
    routing = Routing.of_choices(
        chosen_TK,
        torch.ones(chosen_TK.shape),
        probs_TE.shape[1],
        # Every row is dropped: what was chosen counts all the same.
        dropped_TK=torch.ones_like(chosen_TK, dtype=torch.bool),
        probs_TE=probs_TE,
        valid_T=None if valid is None else torch.tensor(valid),
        num_sequences=sequences,
    )
    return replace(routing, num_groups=groups, groups_kept=kept)


CHOSEN = [[0, 1], [0, 2]]
PROBS = [[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1]]
# Counts 2, 1, 1, 0; E/(K T) = 4/(2*2) = 1, so f = 2, 1, 1, 0. P = .45, .2, .25, .1.
EXPERTS = 2 * 0.45 + 1 * 0.2 + 1 * 0.25
# f' = 3/2 and 1/2; P' = .65 and .35.
DEVICES = 3 / 2 * 0.65 + 1 / 2 * 0.35
# Device 0 hears of both tokens, device 1 of one; G/(M T) = 2/(2*2): f'' = 1 and 1/2.
COMMUNICATION = 1 * 0.65 + 1 / 2 * 0.35


def losses(routing: Routing) -> list[float]:
    found = (balance_loss(routing), device_balance_loss(routing), communication_loss(routing))
    return [loss.item() for loss in found]


def test_the_three_losses_by_hand() -> None:
    found = losses(routing_of(CHOSEN, PROBS, groups=2, kept=2))
    assert found == pytest.approx([EXPERTS, DEVICES, COMMUNICATION], rel=1e-12)


def test_padding_counts_nowhere() -> None:
    padded = routing_of(
        [*CHOSEN, [3, 2]], [*PROBS, [0.0, 0.0, 0.5, 0.5]], 2, 2, valid=[True, True, False]
    )
    assert losses(padded) == pytest.approx([EXPERTS, DEVICES, COMMUNICATION], rel=1e-12)
    nothing = routing_of(CHOSEN, PROBS, 2, 2, valid=[False, False])
    assert losses(nothing) == [1, 1, 1]


def test_rows_of_no_expert_are_sent_nowhere() -> None:
    # As by hand, but the second token's second choice is given up: shares 2/3, 1/3, 0, 0, all on
    # device 0, which hears of both tokens; f' = 2, 0 and f'' = 1, 0.
    found = losses(routing_of([[0, 1], [0, 4]], PROBS, 2, 2))
    balance = 4 * (2 / 3 * 0.45 + 1 / 3 * 0.2)
    assert found == pytest.approx([balance, 2 * 0.65, 0.65], rel=1e-12)


def test_a_busy_expert_beside_an_idle_one_is_even_to_devices() -> None:
    # Every token takes 0 and 2, with probability 1/2 each: both devices do half.
    routing = routing_of([[0, 2]] * 3, [[0.5, 0, 0.5, 0]] * 3, 2, 2)
    assert losses(routing) == pytest.approx([2, 1, 1], rel=1e-12)


def test_even_load_costs_1() -> None:
    # Four experts on two devices, each token on one device: f'' = 2/(1*4) * 2 = 1.
    chosen = [[0, 1], [2, 3], [1, 0], [3, 2]]
    probs_TE = torch.randn(4, 4, dtype=torch.float64).softmax(-1)
    routing = routing_of(chosen, probs_TE.tolist(), 2, 1)
    assert losses(routing) == pytest.approx([1, 1, 1], rel=1e-12)


def test_collapse_on_one_device() -> None:
    # All rows and all probability on one device of two, M = 1: f' = 2, f'' = 2.
    routing = routing_of([[0, 1]] * 3, [[0.5, 0.5, 0, 0]] * 3, 2, 1)
    assert losses(routing) == pytest.approx([2, 2, 2], rel=1e-12)


def papers_sums(chosen: list[list[int]], probs: Matrix, groups: int, kept: int) -> list[float]:
    tokens, experts, top_k = len(chosen), len(probs[0]), len(chosen[0])
    size = experts // groups
    f = [experts / (top_k * tokens) * sum(e in row for row in chosen) for e in range(experts)]
    p = [sum(row[e] for row in probs) / tokens for e in range(experts)]
    members = [range(g * size, (g + 1) * size) for g in range(groups)]
    f1 = [sum(f[e] for e in own) / size for own in members]
    p1 = [sum(p[e] for e in own) for own in members]
    f2 = [
        groups / (kept * tokens) * sum(any(e in own for e in row) for row in chosen)
        for own in members
    ]
    return [sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((f, p), (f1, p1), (f2, p1))]


@given(
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    tokens=st.integers(1, 6),
    sequences=st.integers(1, 3),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_they_are_the_papers_sums_over_each_sequence(
    groups: int, size: int, tokens: int, sequences: int, seed: int
) -> None:
    torch.manual_seed(seed)
    experts = groups * size
    probs_TE = torch.randn(sequences * tokens, experts, dtype=torch.float64).softmax(-1)
    top_k = int(torch.randint(1, experts + 1, ()))
    chosen = probs_TE.topk(top_k).indices.tolist()
    probs = probs_TE.tolist()
    routing = routing_of(chosen, probs, groups, groups, sequences=sequences)
    parts = [slice(b * tokens, (b + 1) * tokens) for b in range(sequences)]
    sums = [papers_sums(chosen[part], probs[part], groups, groups) for part in parts]
    expected = torch.tensor(sums, dtype=torch.float64).mean(0).tolist()
    assert losses(routing) == pytest.approx(expected, rel=1e-12)
    whole = papers_sums(chosen, probs, groups, groups)
    found = [
        loss(routing, "micro_batch").item()
        for loss in (balance_loss, device_balance_loss, communication_loss)
    ]
    assert found == pytest.approx(whole, rel=1e-12)


def layer(kind: str = "deepseek_v2", **balance: Any) -> MoE:
    softmax = {"kind": "softmax_topk", "renormalise": False}
    parts = {
        "deepseek_v2": {"groups_kept": 1},
        "hierarchical": {"outer_top_k": 2, "outer": softmax, "inner": softmax},
        "softmax_topk": {},
    }[kind]
    groups = {} if kind == "softmax_topk" else {"groups": 2}
    router = {"kind": kind, **groups, **parts}
    return MoE(
        4,
        MoEConfig.parse(
            {"num_experts": 4, "top_k": 2, "expert_width": 4, "router": router, "balance": balance}
        ),
    ).double()


def test_the_layer_weighs_them() -> None:
    moe = layer(loss=0.5, device=0.25, communication=2.0, scope="micro_batch")
    output = moe(torch.randn(2, 6, 4, dtype=torch.float64))
    expected = {
        "balance": 0.5 * balance_loss(output.routing, "micro_batch"),
        "device": 0.25 * device_balance_loss(output.routing, "micro_batch"),
        "communication": 2.0 * communication_loss(output.routing, "micro_batch"),
    }
    assert output.losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss)


def test_a_global_load_serves_devices_and_no_communication() -> None:
    # An identity gate, logits ln 4, ln 3, ln 2, ln 1: device 0 has probability 7/10. Three tokens
    # go there; then one, turned round, to device 1, to which it gives 7/10 in its turn.
    moe = layer(device=1.0, communication=0, scope="global_batch")
    assert isinstance(moe.router, LinearRouter)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4))
    token_TD = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64).log()
    # f' = 2, 0 and P' = 7/10, 3/10.
    first = moe(token_TD.repeat(3, 1)).losses["device"]
    assert first.item() == pytest.approx(2 * 7 / 10, rel=1e-12)
    end_micro_step(moe)
    # f' covers both micro-steps, 2 * 3/4 and 2 * 1/4; P' is this one's own: 3/10, 7/10.
    second = moe(token_TD.flip(1)).losses["device"]
    assert second.item() == pytest.approx(3 / 2 * 3 / 10 + 1 / 2 * 7 / 10, rel=1e-12)
    with pytest.raises(ConfigError, match=r"communication=0\.02.*set balance\.communication=0"):
        layer(scope="global_batch")


def test_a_hierarchical_router_serves_them_where_asked() -> None:
    assert set(layer("hierarchical").balancer.weights) == {"balance"}
    moe = layer("hierarchical", device=1.0, communication=1.0)
    output = moe(torch.randn(2, 6, 4, dtype=torch.float64))
    assert (output.routing.num_groups, output.routing.groups_kept) == (2, 2)
    # Both groups are always taken: one row each, and every token is sent to both.
    assert output.losses["device"].item() == pytest.approx(1, rel=1e-12)
    assert output.losses["communication"].item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", ["device", "communication"])
def test_a_router_without_groups_refuses_them(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"balance\.{name}=1\.0 under router kind=softmax_topk"):
        layer("softmax_topk", **{name: 1.0})
