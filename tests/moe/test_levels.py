"""Balance at each level of a hierarchical router, by hand. T tokens, E experts, K experts a token.

S choices of a gate, C choices of a level, B sequences.
"""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.moe import (
    Dropless,
    MoEConfig,
    balance_loss,
    communication_loss,
    device_balance_loss,
)
from mixtura.moe.load import load, max_over_mean
from mixtura.moe.routers import Hierarchical, LinearRouter, RouterShape
from mixtura.moe.routing import Level, Routing, first_choices
from mixtura.moe.shares import LossScope
from mixtura.moe.tokens import Tokens

SCOPES: tuple[LossScope, ...] = ("sequence", "micro_batch", "global_batch")
FLAT = {"kind": "softmax_topk", "renormalise": False}


def layer(
    num_experts: int, top_k: int, groups: int, outer_top_k: int = 1, **parts: Any
) -> MoEConfig:
    router = {
        "kind": "hierarchical",
        "groups": groups,
        "outer_top_k": outer_top_k,
        "outer": FLAT,
        "inner": FLAT,
        **parts,
    }
    shape = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    return MoEConfig.parse({**shape, "router": router})


def router_of(of: MoEConfig, width: int) -> Hierarchical:
    shape = RouterShape(width, of.num_experts, of.top_k)
    made = of.router.build(shape, Dropless()).double().train()
    assert isinstance(made, Hierarchical)
    return made


def three_tokens() -> tuple[Hierarchical, Tensor]:
    """Two groups of two experts, top-1, and the three tokens (and one of padding) of these sums.

    Outer probabilities 3/4, 1/4 for the first two tokens and 1/4, 3/4 for the third. In group 0
    the first token finds 2/3, 1/3 and the second 1/3, 2/3; in group 1 the third finds 4/5, 1/5.
    """
    router = router_of(layer(4, 1, groups=2), 4)
    assert isinstance(router.outer, LinearRouter)
    assert isinstance(router.inner, LinearRouter)
    with torch.no_grad():
        outer = torch.tensor([[3.0, 3.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]])
        inner = torch.tensor([[2.0, 1.0, 1.0, 7.0], [1.0, 2.0, 1.0, 1.0],
                              [1.0, 1.0, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0]])  # fmt: skip
        router.outer.weight.copy_(outer.log())
        router.inner.weight.copy_(inner.log())
    return router, torch.eye(4, dtype=torch.float64)


# Over groups: f = 2/3, 1/3 and P = 7/12, 5/12, so 2 * (14 + 5) / 36.
GROUPS = 19 / 18
# In group 0 f = 1/2, 1/2: 1. In group 1 f = 1, 0 and P = 4/5, 1/5: 8/5. Two rows and one.
EXPERTS = (2 * 1 + 1 * 8 / 5) / 3


def losses(routing: Routing, scope: LossScope = "sequence") -> list[float]:
    of = (balance_loss, device_balance_loss, communication_loss)
    return [loss(routing, scope).item() for loss in of]


@pytest.mark.parametrize("scope", SCOPES)
def test_balance_loss_of_two_levels_by_hand(scope: LossScope) -> None:
    router, x_TD = three_tokens()
    routing = router(Tokens(x_TD[:3]))
    assert routing.chosen_N.tolist() == [0, 1, 2]
    # Each token is sent to one group, so what a group is sent is its rows.
    expected = [(GROUPS + EXPERTS) / 2, GROUPS, GROUPS]
    assert losses(routing, scope) == pytest.approx(expected, rel=1e-6)


def test_sequences_of_unequal_padding_by_hand() -> None:
    # The first sequence has two tokens, the second one and padding. Taken as one, nothing changes:
    # a mean of the two sequences' P, 1/2, 1/2, would be of four tokens.
    router, x_TD = three_tokens()
    routing = router(Tokens(x_TD, torch.tensor([True, True, True, False]), 2))
    whole = [(GROUPS + EXPERTS) / 2, GROUPS, GROUPS]
    assert losses(routing, "micro_batch") == pytest.approx(whole, rel=1e-6)
    assert losses(routing, "global_batch") == pytest.approx(whole, rel=1e-6)
    # By itself the first has 2 * 3/4 over groups and 1 in group 0, the second 2 * 3/4 and 8/5.
    first, second = (3 / 2 + 1) / 2, (3 / 2 + 8 / 5) / 2
    expected = [(first + second) / 2, 3 / 2, 3 / 2]
    assert losses(routing, "sequence") == pytest.approx(expected, rel=1e-6)


def test_global_batch_takes_f_from_the_step_and_weighs_gates_by_its_own_rows() -> None:
    router, x_TD = three_tokens()
    routing = router(Tokens(x_TD[:3]))
    # The step's rows: 1, 3 in group 0 and 2, 2 in group 1.
    step_E = torch.tensor([1, 3, 2, 2])
    # Groups: f = 1/2, 1/2, so 1. Group 0: P = 1/2, 1/2, so 1. Group 1: f = 1/2, 1/2, so 1.
    assert balance_loss(routing, "global_batch", step_E).item() == pytest.approx(1, rel=1e-6)
    # 3, 1, 4, 0: f = 1/2, 1/2; in group 0 P is even; in group 1 f = 1, 0: 8/5, for one row of 3.
    step_E = torch.tensor([3, 1, 4, 0])
    expected = (1 + (2 * 1 + 1 * 8 / 5) / 3) / 2
    found = balance_loss(routing, "global_batch", step_E).item()
    assert found == pytest.approx(expected, rel=1e-6)


def even(
    sizes: list[int], kept: list[int], logits: Tensor, sequences: int, padding: int
) -> Routing:
    """At each level a token takes `kept` of `sizes` choices in turn, so that load is even.

    Each sequence has a token for every expert, and then `padding` tokens that all take the first.
    What gates believe follows `logits`, whatever is chosen.
    """
    num_experts, taken = math.prod(sizes), list(product(*map(range, kept)))
    digits = [*product(*map(range, sizes)), *[(0,) * len(sizes)] * padding] * sequences
    levels, start = [], 0
    for depth, size in enumerate(sizes):
        rows, gate_of = [], {}
        for token, own in enumerate(digits):
            for steps in dict.fromkeys(step[:depth] for step in taken):
                path = [(d + s) % n for d, s, n in zip(own, steps, sizes, strict=False)]
                gate = sum(d * math.prod(sizes[i + 1 : depth]) for i, d in enumerate(path))
                rows.append(token)
                gate_of[len(rows) - 1] = gate
        probs_RS = logits[start : start + len(rows) * size].view(-1, size).softmax(-1)
        start += len(rows) * size
        bank_R = torch.tensor(list(gate_of.values()))
        levels.append(Level(torch.tensor(rows), bank_R, probs_RS, math.prod(sizes[:depth])))
    chosen = [
        sum(
            (d + s) % n * math.prod(sizes[i + 1 :])
            for i, (d, s, n) in enumerate(zip(own, steps, sizes, strict=True))
        )
        for own in digits
        for steps in taken
    ]
    valid = [True] * num_experts + [False] * padding
    chosen_TK = torch.tensor(chosen).view(-1, len(taken))
    routing = Routing.of_choices(
        chosen_TK,
        torch.ones(chosen_TK.shape),
        num_experts,
        valid_T=torch.tensor(valid * sequences) if padding else None,
        num_sequences=sequences,
    )
    return replace(routing, num_groups=sizes[0], groups_kept=kept[0], levels=tuple(levels))


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    data=st.data(),
    sequences=st.integers(1, 3),
    padding=st.integers(0, 2),
    seed=st.integers(0, 999),
    confidence=st.sampled_from([0.0, 1.0, 20.0]),
)
@settings(deadline=None, max_examples=25)
def test_it_is_1_at_even_load_and_pulls_nowhere(
    sizes: list[int],
    data: st.DataObject,
    sequences: int,
    padding: int,
    seed: int,
    confidence: float,
) -> None:
    kept = [data.draw(st.integers(1, size)) for size in sizes]
    torch.manual_seed(seed)
    logits = (confidence * torch.randn(9_000, dtype=torch.float64)).requires_grad_()
    routing = even(sizes, kept, logits, sequences, padding)
    assert len(load(routing).unique()) == 1
    step_E = torch.full((routing.num_experts,), 7)
    for scope in SCOPES:
        found = [
            balance_loss(routing, scope, step_E if scope == "global_batch" else None),
            device_balance_loss(routing, scope, step_E if scope == "global_batch" else None),
            communication_loss(routing, scope),
        ]
        for loss in found:
            assert loss.item() == pytest.approx(1, rel=1e-12)
            (pull,) = torch.autograd.grad(loss, logits, retain_graph=True)
            assert pull.abs().max().item() < 1e-12


@given(seed=st.integers(0, 999), parts=st.sampled_from([1, 2, 3, 6]), nested=st.booleans())
@settings(deadline=None, max_examples=12)
def test_scopes_of_several_ranks_give_the_same_number_on_any_number_of_them(
    seed: int, parts: int, nested: bool
) -> None:
    inner = {"kind": "hierarchical", "groups": 2, "outer": FLAT, "inner": FLAT} if nested else FLAT
    torch.manual_seed(seed)
    router = router_of(layer(12, 4, groups=3, outer_top_k=2, inner=inner), 4)
    x_BSD = torch.randn(6, 5, 4, dtype=torch.float64)
    # For `sequence` of any padding, down to padding alone; `global_batch` at equal tokens.
    valid_BS = torch.arange(5) < torch.randint(0, 6, (6, 1))

    def routings(valid: bool, ranks: int) -> list[Routing]:
        return [
            router(Tokens(x.flatten(0, 1), mask.flatten() if valid else None, len(x)))
            for x, mask in zip(x_BSD.chunk(ranks), valid_BS.chunk(ranks), strict=True)
        ]

    def mean(ranks: int, scope: LossScope, valid: bool, step_E: Tensor | None = None) -> Tensor:
        """Of each loss, over ranks."""
        found = [
            torch.stack([
                balance_loss(routing, scope, step_E),
                device_balance_loss(routing, scope, step_E),
                communication_loss(routing, "sequence"),
            ])
            for routing in routings(valid, ranks)
        ]  # fmt: skip
        return torch.stack(found).mean(0)

    step_E = load(routings(valid=False, ranks=1)[0])
    same = [("sequence", True, None), ("sequence", False, None), ("global_batch", False, step_E)]
    for scope, valid, step in same:
        torch.testing.assert_close(
            mean(parts, scope, valid, step), mean(1, scope, valid, step), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("groups", "outer_top_k"), [(1, 1), (6, 2)])
def test_a_level_of_one_choice_leaves_the_flat_routers_loss(
    scope: LossScope, groups: int, outer_top_k: int
) -> None:
    weight_ED = torch.randn(6, 3, dtype=torch.float64)
    flat = MoEConfig.parse({"num_experts": 6, "top_k": 2, "expert_width": 4, "router": FLAT})
    alone = flat.router.build(RouterShape(3, 6, 2), Dropless()).double()
    made = router_of(layer(6, 2, groups, outer_top_k), 3)
    with torch.no_grad():
        alone.get_parameter("weight").copy_(weight_ED)
        gate = made.inner if groups == 1 else made.outer
        gate.get_parameter("weight").copy_(weight_ED)
    x_TD, valid_T = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 6 < 4
    found = balance_loss(made(Tokens(x_TD, valid_T, 2)), scope)
    torch.testing.assert_close(found, balance_loss(alone(Tokens(x_TD, valid_T, 2)), scope))


def test_a_group_that_was_given_up_asks_no_gate() -> None:
    torch.manual_seed(0)
    gshard = {"kind": "gshard"}
    router = router_of(layer(16, 4, groups=4, outer_top_k=2, outer=gshard), 3)
    routing = router(Tokens(torch.randn(40, 3, dtype=torch.float64)))
    groups, experts = routing.levels
    assert groups.used_R is None
    assert experts.used_R is not None
    # Row after row, two experts of each group that the token was sent to.
    kept_R = (routing.chosen_N < 16).view(-1, 2).all(1)
    assert torch.equal(experts.used_R, kept_R)
    assert not kept_R.all()
    rows = experts.used_R.nonzero()[:, 0]
    assert experts.bank_R is not None
    without = replace(
        experts,
        token_R=experts.token_R[rows],
        bank_R=experts.bank_R[rows],
        probs_RS=experts.probs_RS[rows],
        used_R=None,
    )
    expected = balance_loss(replace(routing, levels=(groups, without)))
    torch.testing.assert_close(balance_loss(routing), expected)


def test_a_gate_whose_rows_do_not_count_is_even() -> None:
    # First choices alone: both tokens' are expert 0, of group 0. Group 1 was asked by both, and has
    # no first choice: 1. Groups: 2 * P_0; experts: 2 * p_0 in group 0 and 1 in group 1.
    router = router_of(layer(4, 2, groups=2, outer_top_k=2), 2)
    with torch.no_grad():
        router.outer.get_parameter("weight").copy_(torch.tensor([[3.0, 3.0], [1.0, 1.0]]).log())
        inner = torch.tensor([[4.0, 4.0], [1.0, 1.0], [9.0, 9.0], [1.0, 1.0]]).log()
        router.inner.get_parameter("weight").copy_(inner)
    routing = first_choices(router(Tokens(torch.eye(2, dtype=torch.float64))))
    assert routing.chosen_N.tolist() == [0, 0]
    expected = (2 * 3 / 4 + (2 * 4 / 5 + 1) / 2) / 2
    assert balance_loss(routing).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_evens_every_level() -> None:
    # 4 groups of 4 and tokens that lean to a few: from over three times the mean to near it.
    torch.manual_seed(0)
    router = router_of(layer(16, 2, groups=4), 8)
    x_TD = torch.randn(256, 8, dtype=torch.float64) + torch.linspace(-2, 2, 8)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    worst: list[float] = []
    for _ in range(40):
        routing = router(Tokens(x_TD))
        worst.append(max_over_mean(load(routing)).item())
        optimizer.zero_grad()
        balance_loss(routing).backward()
        optimizer.step()
    assert worst[0] > 3
    assert worst[-1] < 1.5
