"""Every capacity policy keeps its promise. T tokens, E experts, K experts per token, B sequences.

The twins here are serial: token by token, choice by choice, as the definition reads.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import CapacityConfig, Drop, Dropless, MoEConfig, Reroute
from mixtura.moe.capacity import Candidates, Capacity, group_capacity, places
from mixtura.moe.routers import LinearRouter, RouterShape
from mixtura.moe.tokens import Tokens

# A busy machine draws slowly, and that is no fault of the code.
CHECKS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LIMITED = (Drop, Reroute)


@dataclass(frozen=True)
class Batch:
    """`ranking[b][s]` scores every expert; the last tokens of a sequence may be padding."""

    ranking: list[list[list[float]]]
    lengths: list[int]
    top_k: int
    factor: float

    @property
    def ranking_TE(self) -> Tensor:
        return torch.tensor(self.ranking, dtype=torch.float32).flatten(0, 1)

    @property
    def chosen_TK(self) -> Tensor:
        best_first_TE = self.ranking_TE.argsort(dim=-1, descending=True, stable=True)
        return best_first_TE[:, : self.top_k]

    @property
    def valid_T(self) -> Tensor | None:
        rows = [[s < n for s in range(len(self.ranking[0]))] for n in self.lengths]
        valid_T = torch.tensor(rows).flatten()
        return None if valid_T.all() else valid_T

    @property
    def num_experts(self) -> int:
        return len(self.ranking[0][0])

    def admit(self, rule: Capacity) -> list[list[list[int]]]:
        """expert[b][s][k]"""
        sequences = len(self.ranking)
        expert_TK = admit(rule, self.ranking_TE, self.chosen_TK, self.valid_T, sequences)
        return expert_TK.view(sequences, -1, self.top_k).tolist()

    def chosen(self) -> list[list[list[int]]]:
        return self.chosen_TK.view(len(self.ranking), -1, self.top_k).tolist()

    def capacity(self, sequence: int) -> int:
        rows = self.lengths[sequence] * self.top_k
        return math.ceil(Fraction(str(self.factor)) * rows / self.num_experts)


def admit(
    rule: Capacity,
    ranking_TE: Tensor,
    chosen_TK: Tensor,
    valid_T: Tensor | None,
    num_sequences: int,
) -> Tensor:
    wishes = Candidates(chosen_TK, ranking_TE.shape[1], num_sequences, valid_T, ranking_TE)
    return rule.admit(wishes).expert_TK


@st.composite
def batches(draw: st.DrawFn, max_sequences: int = 3) -> Batch:
    """Few distinct scores, so that most batches hold ties."""
    num_experts = draw(st.integers(1, 6))
    length = draw(st.integers(1, 8))
    sequences = draw(st.integers(1, max_sequences))
    score = st.integers(0, 4).map(float)
    token = st.lists(score, min_size=num_experts, max_size=num_experts)
    ranking = st.lists(token, min_size=length, max_size=length)
    return Batch(
        draw(st.lists(ranking, min_size=sequences, max_size=sequences)),
        draw(st.lists(st.integers(0, length), min_size=sequences, max_size=sequences)),
        draw(st.integers(1, num_experts)),
        draw(st.sampled_from([0.1, 0.5, 0.8, 1.0, 1.1, 1.25, 2.0, 6.0])),
    )


def drop_serially(batch: Batch) -> list[list[list[int]]]:
    nobody = batch.num_experts
    result: list[list[list[int]]] = []
    for sequence, tokens in enumerate(batch.chosen()):
        room = [batch.capacity(sequence)] * batch.num_experts
        result.append([])
        for position, choices in enumerate(tokens):
            row = [nobody] * batch.top_k
            for k, expert in enumerate(choices):
                if position < batch.lengths[sequence] and room[expert] > 0:
                    room[expert] -= 1
                    row[k] = expert
            result[-1].append(row)
    return result


def reroute_serially(batch: Batch) -> list[list[list[int]]]:
    """Each token takes its best K experts with room: its choices first, then the others by score.

    Of two that tie the lower number is better. A choice keeps its own row; the further experts
    fill the rows that are left, the best first.
    """
    nobody = batch.num_experts
    result: list[list[list[int]]] = []
    for sequence, tokens in enumerate(batch.chosen()):
        room = [batch.capacity(sequence)] * batch.num_experts
        result.append([])
        for position, choices in enumerate(tokens):
            row = [nobody] * batch.top_k
            if position < batch.lengths[sequence]:
                score = batch.ranking[sequence][position]
                others = sorted(set(range(nobody)) - set(choices), key=lambda e: (-score[e], e))
                taken = [e for e in [*choices, *others] if room[e] > 0][: batch.top_k]
                for expert in taken:
                    room[expert] -= 1
                further = [e for e in taken if e not in choices]
                for k, expert in enumerate(choices):
                    if expert in taken:
                        row[k] = expert
                    elif further:
                        row[k] = further.pop(0)
            result[-1].append(row)
    return result


def test_drop_by_hand() -> None:
    # 4 tokens, top-1, 2 experts: capacity ceil(1 * 4 / 2) = 2. The third that wants 0 is lost.
    ranking_TE = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    chosen_TK = torch.tensor([[0], [0], [0], [1]])
    assert admit(Drop(1.0), ranking_TE, chosen_TK, None, 1).tolist() == [[0], [0], [2], [1]]
    # As two sequences of two: capacity ceil(1 * 2 / 2) = 1 each.
    assert admit(Drop(1.0), ranking_TE, chosen_TK, None, 2).tolist() == [[0], [2], [0], [1]]


def test_reroute_by_hand() -> None:
    # 3 tokens, top-2, 3 experts: capacity ceil(1 * 6 / 3) = 2. All want 0, then 1.
    # Tokens 0 and 1 fill both; token 2 finds only expert 2, and its second row is lost.
    ranking_TE = torch.tensor([[3.0, 2.0, 1.0]] * 3)
    chosen_TK = torch.tensor([[0, 1]] * 3)
    expert_TK = admit(Reroute(1.0), ranking_TE, chosen_TK, None, 1)
    assert expert_TK.tolist() == [[0, 1], [0, 1], [2, 3]]


def test_reroute_keeps_a_choice_in_its_row() -> None:
    # Capacity ceil(0.7 * 6 / 4) = 2 (from 1.05). Expert 0 is full after two tokens; the third keeps
    # its second choice, 1, in its second row, and its first row goes to the next best, 3.
    ranking_TE = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0], [4.0, 3.0, 1.0, 2.0]])
    chosen_TK = torch.tensor([[0, 2], [0, 2], [0, 1]])
    expert_TK = admit(Reroute(0.7), ranking_TE, chosen_TK, None, 1)
    assert expert_TK.tolist() == [[0, 2], [0, 2], [3, 1]]


def test_a_rerouted_token_displaces_a_later_one_and_not_an_earlier() -> None:
    # Capacity 1, top-1. Token 1 is refused by 0 and takes 1, which token 2 wished for; token 2
    # takes 2. Token 0 stays.
    ranking_TE = torch.tensor([[9.0, 0.0, 0.0], [9.0, 5.0, 0.0], [0.0, 9.0, 5.0]])
    chosen_TK = torch.tensor([[0], [0], [1]])
    assert admit(Reroute(1.0), ranking_TE, chosen_TK, None, 1).tolist() == [[0], [1], [2]]


@given(batches())
@settings(CHECKS, max_examples=60)
def test_drop_equals_its_serial_twin(batch: Batch) -> None:
    assert batch.admit(Drop(batch.factor)) == drop_serially(batch)


@given(batches())
@settings(CHECKS, max_examples=120)
def test_reroute_equals_its_serial_twin(batch: Batch) -> None:
    assert batch.admit(Reroute(batch.factor)) == reroute_serially(batch)


@pytest.mark.parametrize("seed", [186, 403, 659, 1225])
def test_reroute_with_many_ties(seed: int) -> None:
    # Batches where ties broken anew in each round left an expert with room and a row lost.
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.randint(0, 3, (12, 6), generator=generator).tolist()
    batch = Batch([ranking], [12], top_k=2, factor=1.0)
    assert batch.admit(Reroute(1.0)) == reroute_serially(batch)


def test_reroute_over_many_rounds() -> None:
    # All tokens like the same experts, so that refusals run through the whole list.
    generator = torch.Generator().manual_seed(0)
    ranking_TE = torch.randn(96, 12, generator=generator) + 4 * torch.arange(12.0)
    batch = Batch([ranking_TE[:48].tolist(), ranking_TE[48:].tolist()], [48, 40], 3, 1.0)
    assert batch.admit(Reroute(1.0)) == reroute_serially(batch)


@given(batches(), st.sampled_from(LIMITED))
@settings(CHECKS, max_examples=60)
def test_no_expert_is_over_capacity_and_no_token_twice_at_one(
    batch: Batch, policy: type[Drop] | type[Reroute]
) -> None:
    for sequence, tokens in enumerate(batch.admit(policy(batch.factor))):
        computed = [e for row in tokens for e in row if e != batch.num_experts]
        for expert in range(batch.num_experts):
            assert computed.count(expert) <= batch.capacity(sequence)
        for row in tokens:
            held = [e for e in row if e != batch.num_experts]
            assert len(held) == len(set(held))


@given(batches())
@settings(CHECKS, max_examples=30)
def test_dropless_loses_nothing_but_padding(batch: Batch) -> None:
    for tokens, wishes, length in zip(
        batch.admit(Dropless()), batch.chosen(), batch.lengths, strict=True
    ):
        assert tokens[:length] == wishes[:length]
        assert tokens[length:] == [[batch.num_experts] * batch.top_k] * len(tokens[length:])


@given(batches())
@settings(CHECKS, max_examples=30)
def test_reroute_loses_nothing_where_there_is_room(batch: Batch) -> None:
    # A factor of E gives each expert room for E * n * K / E = n * K >= n rows: all of n tokens.
    for tokens, length in zip(batch.admit(Reroute(batch.num_experts)), batch.lengths, strict=True):
        assert all(e != batch.num_experts for row in tokens[:length] for e in row)


@given(batches())
@settings(CHECKS, max_examples=30)
def test_padding_is_computed_by_nobody(batch: Batch) -> None:
    for rule in (Dropless(), Drop(batch.factor), Reroute(batch.factor)):
        for tokens, length in zip(batch.admit(rule), batch.lengths, strict=True):
            assert all(e == batch.num_experts for row in tokens[length:] for e in row)


@given(batches(), st.sampled_from(LIMITED), st.data())
@settings(CHECKS, max_examples=40)
def test_later_tokens_change_nothing_before_them(
    batch: Batch, policy: type[Drop] | type[Reroute], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(batch.ranking[0])))
    score = st.integers(0, 4).map(float)
    token = st.lists(score, min_size=batch.num_experts, max_size=batch.num_experts)
    others = [tokens[:cut] + [data.draw(token) for _ in tokens[cut:]] for tokens in batch.ranking]
    changed = Batch(others, batch.lengths, batch.top_k, batch.factor)
    rule = policy(batch.factor)
    before = [tokens[:cut] for tokens in batch.admit(rule)]
    assert [tokens[:cut] for tokens in changed.admit(rule)] == before


@given(batches(), st.sampled_from(LIMITED))
@settings(CHECKS, max_examples=40)
def test_neighbours_in_the_batch_and_padding_change_nothing(
    batch: Batch, policy: type[Drop] | type[Reroute]
) -> None:
    rule = policy(batch.factor)
    together = batch.admit(rule)
    for sequence, length in enumerate(batch.lengths):
        if length == 0:
            continue
        alone = Batch(
            [batch.ranking[sequence][:length]], [length], batch.top_k, batch.factor
        ).admit(rule)
        assert together[sequence][:length] == alone[0]


@pytest.mark.parametrize(
    ("factor", "rows", "num_experts", "capacity"),
    [
        (1.0, 8, 4, 2),
        (1.0, 9, 4, 3),
        (1.25, 16, 8, 3),
        # In floating point 1.1 * 50 is 55.00000000000001, whose ceiling is 56.
        (1.1, 50, 1, 55),
        (1.1, 100, 5, 22),
        # A single row still fits.
        (0.1, 1, 8, 1),
    ],
)
def test_capacity_by_hand(factor: float, rows: int, num_experts: int, capacity: int) -> None:
    chosen_TK = torch.zeros(rows, 1, dtype=torch.int64)
    assert group_capacity(factor, Candidates(chosen_TK, num_experts), 1).tolist() == [capacity]


@pytest.mark.parametrize("num_experts", [1, 3, 8])
def test_capacity_is_the_ceiling_of_the_exact_product(num_experts: int) -> None:
    # Factors 0.01 to 4.00, and sequences of 0 to 200 tokens, all in one batch.
    valid_T = (torch.arange(200) < torch.arange(201)[:, None]).flatten()
    chosen_TK = torch.zeros(201 * 200, 1, dtype=torch.int64)
    for hundredths in range(1, 401):
        found = group_capacity(
            hundredths / 100, Candidates(chosen_TK, num_experts, 201, valid_T), 201
        )
        # In whole numbers: -(-a // b) is the ceiling of a / b.
        exact = [-(-hundredths * tokens // (100 * num_experts)) for tokens in range(201)]
        assert found.tolist() == exact, hundredths


def test_capacity_counts_the_tokens_of_each_sequence_alone() -> None:
    # 3 and 1 tokens of 2 rows, factor 1, 4 experts: ceil(6 / 4) = 2 and ceil(2 / 4) = 1.
    valid_T = torch.tensor([True, True, True, False, True, False, False, False])
    chosen_TK = torch.zeros(8, 2, dtype=torch.int64)
    assert group_capacity(1.0, Candidates(chosen_TK, 4, 2, valid_T), 2).tolist() == [2, 1]


def test_places_by_hand() -> None:
    expert_BN = torch.tensor([[0, 1, 0, 0], [1, 1, 2, 0]])
    assert places(expert_BN, 3).tolist() == [[0, 0, 1, 2], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    "router",
    [
        {"kind": "softmax_topk"},
        {"kind": "softmax_topk", "renormalise": False},
        {"kind": "topk_softmax"},
        {"kind": "sigmoid_topk", "scale": 2.0},
    ],
)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([0.4, 1.0, 3.0]))
@settings(CHECKS, max_examples=10)
def test_a_tokens_weights_are_as_the_router_says(
    router: dict[str, object], seed: int, factor: float
) -> None:
    torch.manual_seed(seed)
    config = MoEConfig.parse({"num_experts": 5, "top_k": 2, "expert_width": 1, "router": router})
    made = config.router.build(RouterShape(3, 5, 2), Dropless()).double()
    assert isinstance(made, LinearRouter)
    if made.bias is not None:
        made.bias.normal_()
    x_TD = torch.randn(12, 3, dtype=torch.float64)
    valid_T = torch.arange(12) % 6 < 5
    plain, drop, reroute = (
        made(Tokens(x_TD, valid_T, 2), rule) for rule in (Dropless(), Drop(factor), Reroute(factor))
    )
    # The wish is the same whatever the policy.
    assert torch.equal(drop.chosen_N, plain.chosen_N)
    assert torch.equal(reroute.chosen_N, plain.chosen_N)

    # Under drop, what is kept weighs as if nothing were dropped.
    kept_N = drop.expert_N < 5
    assert torch.equal(drop.weight_N, torch.where(kept_N, plain.weight_N, 0.0))

    logits_TE = x_TD @ made.weight.T
    sigmoid = router["kind"] == "sigmoid_topk"
    score_TE = logits_TE.sigmoid() if sigmoid else logits_TE.softmax(-1)
    # A lost row stands in the sum with the expert that it wished for, and weighs nothing itself.
    counted_N = torch.where(reroute.expert_N < 5, reroute.expert_N, reroute.chosen_N)
    score_TK = score_TE.gather(1, counted_N.view(-1, 2))
    if router.get("renormalise", True):
        score_TK = score_TK / score_TK.sum(-1, keepdim=True) * (2.0 if sigmoid else 1.0)
    weight_N = torch.where(reroute.expert_N < 5, score_TK.flatten(), 0.0)
    torch.testing.assert_close(reroute.weight_N, weight_N)


@pytest.mark.parametrize(
    ("tree", "rule"),
    [
        ({}, Dropless()),
        ({"policy": "drop"}, Drop(1.25)),
        ({"policy": "drop", "factor": 2}, Drop(2.0)),
        ({"policy": "reroute", "factor": 0.5}, Reroute(0.5)),
    ],
)
def test_config_builds_its_rule(tree: dict[str, object], rule: Capacity) -> None:
    assert CapacityConfig.parse(tree).build() == rule


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"factor": 2.0}, ["factor=2.0", "policy=dropless", "policy=drop"]),
        ({"policy": "drop", "factor": 0}, ["factor", "greater than 0", "given 0"]),
        ({"policy": "drop", "factor": float("inf")}, ["factor", "finite"]),
        ({"policy": "dorp"}, ["policy", "'dropless', 'drop', 'reroute' or 'wave'", "'dorp'"]),
    ],
)
def test_a_bad_rule_is_refused(tree: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        CapacityConfig.parse(tree)
    for word in words:
        assert word in str(refusal.value)
