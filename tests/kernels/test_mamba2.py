"""Mamba-2's recurrence and its mixer against their slow twins.

B sequences, S tokens, R rows, H heads, P channels of a head, X = HP, G groups, N state dims.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.gated_delta import Spans
from mixtura.kernels.mamba2 import (
    MambaParts,
    MambaWeights,
    gated_group_norm,
    mamba2_chunks,
    mamba2_naive,
    mamba_mixer_naive,
    mamba_mixer_rows,
    mamba_mixer_rows_torch,
)
from mixtura.kernels.native import InstructionSet, instruction_sets

# Without compiled kernels "auto" is the slow twin.
sets = pytest.mark.parametrize("kernels", instruction_sets() or ["auto"])


def test_mamba2_naive_by_hand() -> None:
    # One head with one channel, two state dims; b is (1, 0), (1, 0), (0, 1), and c (1, 1).
    # Token 1, step 1: 4 is written under dim 0, and read: 4.
    # Token 2, decay 1/2, step 3: 4 becomes 2, and 3 * 2 = 6 is added: 8.
    # Token 3, decay 1/4, step 1: 8 becomes 2, and 3 is written under dim 1: 2 + 3 = 5.
    b_SGN = torch.tensor([[1.0, 0], [1, 0], [0, 1]])[:, None]
    x_SHP = torch.tensor([4.0, 2, 3])[:, None, None]
    step_SH, decay_SH = torch.tensor([[1.0], [3.0], [1.0]]), torch.tensor([[1.0], [0.5], [0.25]])
    parts = MambaParts(x_SHP, step_SH, decay_SH.log(), b_SGN, torch.ones(3, 1, 2))
    out_SHP, state_HNP = mamba2_naive(parts, torch.zeros(1, 2, 1))
    assert out_SHP.flatten().tolist() == [4, 8, 5]
    assert state_HNP.flatten().tolist() == [2, 3]


def test_gated_group_norm_by_hand() -> None:
    # silu(0) = 0, and silu of a large number is that number. Two groups of two channels:
    # (300, 400) has an rms of 353.6, so it becomes (0.849, 1.131), and (500, 0) becomes (1.414, 0).
    weights = case(1, heads=2, head_dim=2, groups=2).weights._replace(
        norm_X=torch.tensor([1.0, 1, 1, 10]), epsilon=1e-12
    )
    found = gated_group_norm(
        torch.tensor([[3.0, 4, 5, 7]]), torch.tensor([[100.0, 100, 100, 0]]), weights
    )
    expected = torch.tensor([[3 / 12.5**0.5, 4 / 12.5**0.5, 2**0.5, 0]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 131])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_chunks_equals_naive_in_values_and_gradients(length: int, groups: int) -> None:
    torch.manual_seed(length)
    sizes = {"x": (4, 3), "step": (4,), "decay_log": (4,), "b": (groups, 5), "c": (groups, 5)}
    drawn = {name: torch.randn(2, length, *size).double() for name, size in sizes.items()}
    drawn["step"] = drawn["step"].exp()
    drawn["decay_log"] = -drawn["decay_log"].exp()
    given = MambaParts(*(one.requires_grad_() for one in drawn.values()))
    found = mamba2_chunks(given)
    empty = torch.zeros(4, 5, 3, dtype=torch.float64)
    expected = torch.stack(
        [mamba2_naive(MambaParts(*one), empty)[0] for one in zip(*given, strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    grad = torch.randn_like(found)
    pairs = (torch.autograd.grad(out, given, grad) for out in (found, expected))
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_mamba2_chunks_keeps_gradients_finite_where_all_is_forgotten() -> None:
    # e^-200 is 0 in fp32, and e^200, by which nothing may be divided, infinite.
    torch.manual_seed(0)
    x, b, c = torch.randn(3, 1, 70, 1, 4).unbind()
    decay_log = torch.full((1, 70, 1), -200.0, requires_grad=True)
    out = mamba2_chunks(MambaParts(x, torch.ones(1, 70, 1), decay_log, b, c))
    (grad,) = torch.autograd.grad(out.sum(), decay_log)
    # Each token reads its own input alone.
    torch.testing.assert_close(out, (b * c).sum(-1, keepdim=True) * x, rtol=1e-5, atol=1e-5)
    assert grad.isfinite().all()


class Case(NamedTuple):
    projected: Tensor
    step: Tensor
    weights: MambaWeights
    states: tuple[Tensor, Tensor]


def case(
    rows: int,
    slots: int = 1,
    heads: int = 4,
    head_dim: int = 8,
    state_dim: int = 16,
    groups: int = 2,
    taps: int = 4,
) -> Case:
    torch.manual_seed(rows)
    inner = heads * head_dim
    channels = inner + 2 * groups * state_dim
    weights = MambaWeights(
        torch.randn(taps, channels) / 2,
        torch.randn(channels) / 2,
        torch.randn(heads).exp(),
        torch.randn(heads),
        torch.randn(heads),
        torch.rand(inner) + 0.5,
        1e-5,
        0.02,
        3.0,
        groups,
    )
    tail = torch.randn(slots, taps - 1, channels)
    state = torch.randn(slots, heads, state_dim, head_dim)
    return Case(
        torch.randn(rows, inner + channels), torch.randn(rows, heads), weights, (tail, state)
    )


def run(
    of: Case, spans: Spans, kernels: InstructionSet = "auto"
) -> tuple[Tensor, tuple[Tensor, ...]]:
    tail, state = (one.clone() for one in of.states)
    found = mamba_mixer_rows(of.projected, of.step, of.weights, tail, state, spans, kernels)
    return found, (tail, state)


def assert_near(found: Tensor, expected: Tensor, bound: float = 2e-5) -> None:
    worst = bound * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=worst)


@sets
@pytest.mark.parametrize("rows", [1, 2, 5, 33, 70])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"heads": 1, "head_dim": 1, "state_dim": 1, "groups": 1, "taps": 2},
        {"heads": 3, "head_dim": 33, "state_dim": 7, "groups": 1, "taps": 5},
        {"heads": 2, "head_dim": 20, "state_dim": 33, "taps": 16},
        {"head_dim": 64, "state_dim": 128, "groups": 1},
    ],
)
def test_mamba_mixer_rows_equals_naive(
    kernels: InstructionSet, rows: int, sizes: dict[str, Any]
) -> None:
    of = case(rows, **sizes)
    tail, state = of.states
    wanted = mamba_mixer_naive(of.projected, of.step, of.weights, tail[0], state[0])
    found, states = run(of, Spans.of({0: range(rows)}), kernels)
    assert_near(found, wanted[0])
    # Inputs are copied, bit for bit.
    assert torch.equal(states[0][0], wanted[1])
    assert_near(states[1][0], wanted[2])


@sets
@pytest.mark.parametrize("cuts", [range(71), [0, 1, 2, 69, 70], [0, 31, 33, 64, 70], [0, 40, 70]])
def test_mamba_mixer_rows_in_any_parts_has_the_same_bits(
    kernels: InstructionSet, cuts: Any
) -> None:
    of = case(70, state_dim=9, head_dim=20)
    whole, expected = run(of, Spans.of({0: range(70)}), kernels)
    tail, state = (one.clone() for one in of.states)
    found = []
    for begin, end in pairwise(cuts):
        part = slice(begin, end)
        spans = Spans.of({0: range(end - begin)})
        rows = (of.projected[part], of.step[part])
        found.append(mamba_mixer_rows(*rows, of.weights, tail, state, spans, kernels))
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(tail, expected[0])
    assert torch.equal(state, expected[1])


@sets
def test_mamba_mixer_rows_of_many_sequences_has_the_bits_of_each_alone(
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
        alone = Case(of.projected[rows], of.step[rows], of.weights, of.states)
        wanted, expected = run(alone, Spans.of({slot: range(len(rows))}), kernels)
        assert torch.equal(found[rows], wanted)
        for one, other in zip(states, expected, strict=True):
            assert torch.equal(one[slot], other[slot])
    for before, after in zip(of.states, states, strict=True):
        assert torch.equal(before[[4, 8]], after[[4, 8]])


@sets
def test_mamba_mixer_rows_in_extreme_steps(kernels: InstructionSet) -> None:
    # The bounds of steps hold, and inputs whose e^x is infinite change nothing else.
    of = case(6)
    of.step[:] = torch.tensor([200.0, -200.0])[torch.arange(6)[:, None] % 2]
    of.projected[3] *= 100
    tail, state = of.states
    wanted = mamba_mixer_naive(of.projected, of.step, of.weights, tail[0], state[0])
    found, states = run(of, Spans.of({0: range(6)}), kernels)
    assert found.isfinite().all()
    assert_near(found, wanted[0])
    assert_near(states[1][0], wanted[2])


def test_mamba_mixer_rows_torch_equals_the_kernels() -> None:
    of = case(12, slots=3)
    spans = Spans.of({2: range(0, 12, 2), 0: [1, 5, 11]})
    tail, state = (one.clone() for one in of.states)
    wanted = mamba_mixer_rows_torch(of.projected, of.step, of.weights, tail, state, spans)
    found, states = run(of, spans)
    assert_near(found, wanted)
    assert torch.equal(states[0], tail)
    assert_near(states[1], state)


@sets
def test_steps_lie_within_their_bounds(kernels: InstructionSet) -> None:
    # softplus(-200) is 0 and softplus(200) is 200; with bounds 0.02 and 3 and a rate of 1 the state
    # decays by e^-0.02, then by e^-3, and b, c and x are 0.
    of = case(2, heads=1, head_dim=1, state_dim=1, groups=1, taps=2)
    nothing = {
        name: torch.zeros_like(getattr(of.weights, name)) for name in ("conv_TC", "conv_bias_C")
    }
    weights = of.weights._replace(**nothing, rate_H=torch.ones(1), step_bias_H=torch.zeros(1))
    of = of._replace(weights=weights, step=torch.tensor([[-200.0], [200.0]]))
    before = of.states[1].item()
    _, (_, state) = run(of, Spans.of({0: range(2)}), kernels)
    assert state.item() == pytest.approx(before * 2.718281828**-3.02, rel=1e-6)
    assert F.softplus(torch.tensor(200.0)) == 200


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ({1: [0]}, r"slot 1 must lie in 0\.\.0"),
        ({0: [2]}, r"row 2 must lie in 0\.\.1"),
    ],
)
@pytest.mark.skipif(not instruction_sets(), reason="no compiled kernels here")
def test_mamba_mixer_rows_refuses_what_does_not_exist(
    spans: dict[int, list[int]], said: str
) -> None:
    with pytest.raises(IndexError, match=said):
        run(case(2), Spans.of(spans))
