"""The gated delta rule and its mixer against their slow twins.

B sequences, S tokens, R rows, H value heads, K key dim, V value dim, C channels, X = HV.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.gated_delta import (
    DeltaWeights,
    Spans,
    delta_mixer_naive,
    delta_mixer_rows,
    delta_mixer_rows_torch,
    gated_delta_chunks,
    gated_delta_naive,
)
from mixtura.kernels.native import InstructionSet, instruction_sets

sets = pytest.mark.parametrize("kernels", instruction_sets())


def test_gated_delta_naive_by_hand() -> None:
    # One head, two key dims, one value dim; keys (1, 0), (1, 0), (0, 1).
    # Token 1, beta 1: holds 0, so 4 is written under dim 0; q = (1, 1) reads 4.
    # Token 2, decay 1/2, beta 1/2: 4 becomes 2, and (6 - 2) / 2 = 2 is added: 4.
    # Token 3, decay 1/4: 4 becomes 1, and 3 is written under dim 1: 1 + 3 = 4.
    k_SHK = torch.tensor([[1.0, 0], [1, 0], [0, 1]])[:, None]
    v_SHV = torch.tensor([4.0, 6, 3])[:, None, None]
    decay_SH, beta_SH = torch.tensor([[1.0], [0.5], [0.25]]), torch.tensor([[1.0], [0.5], [1.0]])
    rule = (torch.ones(3, 1, 2), k_SHK, v_SHV, decay_SH, beta_SH)
    out_SHV, state_HKV = gated_delta_naive(*rule, torch.zeros(1, 2, 1))
    assert out_SHV.flatten().tolist() == [4, 4, 4]
    assert state_HKV.flatten().tolist() == [1, 3]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 131])
def test_gated_delta_chunks_equals_naive_in_values_and_gradients(length: int) -> None:
    torch.manual_seed(length)
    sizes = {"q": (5,), "k": (5,), "v": (3,), "decay_log": (), "beta": ()}
    drawn = {
        name: torch.randn(2, length, 2, *size, dtype=torch.float64) for name, size in sizes.items()
    }
    drawn["k"] = F.normalize(drawn["k"], dim=-1)
    drawn["decay_log"] = -drawn["decay_log"].exp()
    drawn["beta"] = drawn["beta"].sigmoid()
    given = [one.requires_grad_() for one in drawn.values()]
    found = gated_delta_chunks(*given)
    empty = torch.zeros(2, 5, 3, dtype=torch.float64)
    expected = torch.stack(
        [
            gated_delta_naive(q, k, v, decay_log.exp(), beta, empty)[0]
            for q, k, v, decay_log, beta in zip(*given, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    grad = torch.randn_like(found)
    pairs = (torch.autograd.grad(out, given, grad) for out in (found, expected))
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_gated_delta_chunks_keeps_gradients_finite_where_all_is_forgotten() -> None:
    # e^-200 is 0 in fp32, and e^200, by which nothing may be divided, infinite.
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 70, 1, 4).unbind()
    decay_log = torch.full((1, 70, 1), -200.0, requires_grad=True)
    out = gated_delta_chunks(q, F.normalize(k, dim=-1), v, decay_log, torch.ones(1, 70, 1))
    (grad,) = torch.autograd.grad(out.sum(), decay_log)
    # Each token reads its own value alone.
    expected = (q * F.normalize(k, dim=-1)).sum(-1, keepdim=True) * v
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert grad.isfinite().all()


class Case(NamedTuple):
    projected: Tensor
    gates: Tensor
    weights: DeltaWeights
    states: tuple[Tensor, Tensor]


def case(
    rows: int,
    slots: int = 1,
    key_heads: int = 2,
    value_heads: int = 4,
    key_dim: int = 8,
    value_dim: int = 16,
    taps: int = 4,
) -> Case:
    torch.manual_seed(rows)
    values = value_heads * value_dim
    channels = 2 * key_heads * key_dim + values
    weights = DeltaWeights(
        torch.randn(taps, channels) / 2,
        torch.randn(value_heads).exp(),
        torch.randn(value_heads),
        torch.rand(value_dim) + 0.5,
        1e-6,
        key_heads,
        key_dim,
    )
    tail = torch.randn(slots, taps - 1, channels)
    state = torch.randn(slots, value_heads, key_dim, value_dim)
    return Case(
        torch.randn(rows, channels + values),
        torch.randn(rows, 2 * value_heads),
        weights,
        (tail, state),
    )


def run(of: Case, spans: Spans, kernels: InstructionSet) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    states = tuple(state.clone() for state in of.states)
    tail, state = states
    return delta_mixer_rows(of.projected, of.gates, of.weights, tail, state, spans, kernels), (
        tail,
        state,
    )


def assert_near(found: Tensor, expected: Tensor, bound: float = 2e-5) -> None:
    worst = bound * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=worst)


@sets
@pytest.mark.parametrize("rows", [1, 2, 5, 33, 70])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"key_heads": 1, "value_heads": 1, "key_dim": 1, "value_dim": 1, "taps": 2},
        {"key_heads": 1, "value_heads": 3, "key_dim": 7, "value_dim": 33, "taps": 5},
        {"key_heads": 2, "value_heads": 2, "key_dim": 33, "value_dim": 20, "taps": 16},
        {"key_heads": 2, "value_heads": 4, "key_dim": 128, "value_dim": 128},
    ],
)
def test_delta_mixer_rows_equals_naive(
    kernels: InstructionSet, rows: int, sizes: dict[str, Any]
) -> None:
    of = case(rows, **sizes)
    tail, state = of.states
    wanted = delta_mixer_naive(of.projected, of.gates, of.weights, tail[0], state[0])
    found, states = run(of, Spans.of({0: range(rows)}), kernels)
    assert_near(found, wanted[0])
    # Inputs are copied, bit for bit.
    assert torch.equal(states[0][0], wanted[1])
    assert_near(states[1][0], wanted[2])


@sets
@pytest.mark.parametrize("cuts", [range(71), [0, 1, 2, 69, 70], [0, 31, 33, 64, 70], [0, 40, 70]])
def test_delta_mixer_rows_in_any_parts_is_the_same(kernels: InstructionSet, cuts: Any) -> None:
    of = case(70, key_dim=9, value_dim=20)
    whole, expected = run(of, Spans.of({0: range(70)}), kernels)
    tail, state = (one.clone() for one in of.states)
    found = []
    for begin, end in pairwise(cuts):
        part = slice(begin, end)
        spans = Spans.of({0: range(end - begin)})
        rows = (of.projected[part], of.gates[part])
        found.append(delta_mixer_rows(*rows, of.weights, tail, state, spans, kernels))
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(tail, expected[0])
    assert torch.equal(state, expected[1])


@sets
def test_delta_mixer_rows_of_many_sequences_has_the_bits_of_each_alone(
    kernels: InstructionSet,
) -> None:
    of = case(60, slots=9)
    # Slots 4 and 8 have no rows, rows 57 to 59 no sequence; the sequences' rows are mixed.
    rows_of = {
        slot: list(range(number, 57, 7)) for number, slot in enumerate([5, 0, 7, 2, 1, 3, 6])
    }
    rows_of[4] = []
    found, states = run(of, Spans.of(rows_of), kernels)
    assert found[57:].count_nonzero() == 0
    for slot, rows in rows_of.items():
        alone = Case(of.projected[rows], of.gates[rows], of.weights, of.states)
        wanted, expected = run(alone, Spans.of({slot: range(len(rows))}), kernels)
        assert torch.equal(found[rows], wanted)
        for one, other in zip(states, expected, strict=True):
            assert torch.equal(one[slot], other[slot])
    for before, after in zip(of.states, states, strict=True):
        assert torch.equal(before[[4, 8]], after[[4, 8]])


def test_delta_mixer_rows_torch_equals_the_kernels() -> None:
    of = case(12, slots=3)
    spans = Spans.of({2: range(0, 12, 2), 0: [1, 5, 11]})
    tail, state = (one.clone() for one in of.states)
    wanted = delta_mixer_rows_torch(of.projected, of.gates, of.weights, tail, state, spans)
    found, states = run(of, spans, "auto")
    assert_near(found, wanted)
    assert torch.equal(states[0], tail)
    assert_near(states[1], state)


def test_spans_of_a_batch_leave_padding_out() -> None:
    # Of two sequences of 3, the second begins with padding: rows 0, 1, 2 and 4, 5.
    valid_BS = torch.tensor([[True, True, True], [False, True, True]])
    spans = Spans.of_batch(2, 3, valid_BS)
    assert [one.tolist() for one in spans] == [[0, 1], [3, 5], [0, 1, 2, 4, 5]]
    assert [one.tolist() for one in Spans.of_batch(2, 2, None)] == [[0, 1], [2, 4], [0, 1, 2, 3]]


@sets
def test_delta_mixer_rows_in_extreme_gates(kernels: InstructionSet) -> None:
    # A step of 200 forgets all, one of 0 nothing; beta of 0 or 1; inputs whose e^x is infinite.
    of = case(6)
    of.gates[:] = torch.tensor([200.0, -200.0])[torch.arange(6)[:, None] % 2]
    of.projected[3] *= 100
    tail, state = of.states
    wanted = delta_mixer_naive(of.projected, of.gates, of.weights, tail[0], state[0])
    found, states = run(of, Spans.of({0: range(6)}), kernels)
    assert found.isfinite().all()
    assert_near(found, wanted[0])
    assert_near(states[1][0], wanted[2])


@sets
def test_delta_mixer_rows_gives_nan_for_nan(kernels: InstructionSet) -> None:
    of = case(3)
    of.projected[1, 0] = math.nan
    found, states = run(of, Spans.of({0: range(3)}), kernels)
    assert found[0].isfinite().all()
    # The query is in the window of rows 1 and 2; it is written nowhere.
    assert found[1:, : found.shape[1] // 2].isnan().all()
    assert states[1].isfinite().all()


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ({1: [0]}, r"slot 1 must lie in 0\.\.0"),
        ({0: [2]}, r"row 2 must lie in 0\.\.1"),
    ],
)
@pytest.mark.skipif(not instruction_sets(), reason="no compiled kernels here")
def test_delta_mixer_rows_refuses_what_does_not_exist(
    spans: dict[int, list[int]], said: str
) -> None:
    with pytest.raises(IndexError, match=said):
        run(case(2), Spans.of(spans), "auto")
