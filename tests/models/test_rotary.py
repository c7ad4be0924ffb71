"""Rotary positions. B sequences, S positions, H heads, C head dim, P = C/2 pairs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mixtura.models.rotary import rotary, rotate, rotate_naive
from mixtura.shapes.rope import LongRopeScaling


def test_one_pair_by_hand() -> None:
    # A head of one pair turns by the position: (1, 0) at 0, 1, 2 -> (cos p, sin p).
    rope = rotary(torch.arange(3), head_dim=2, base=10_000.0)
    x_BSHC = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    expected = [[math.cos(p), math.sin(p)] for p in range(3)]
    for turn in (rotate, rotate_naive):
        torch.testing.assert_close(turn(x_BSHC, rope)[0, :, 0], torch.tensor(expected))


def test_two_pairs_by_hand() -> None:
    # Pair 0 is (x0, x2) and turns by p; pair 1 is (x1, x3) and turns by p * 100^(-2/4) = p / 10.
    rope = rotary(torch.tensor([5]), head_dim=4, base=100.0)
    x_BSHC = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    expected = [math.cos(5), -math.sin(0.5), math.sin(5), math.cos(0.5)]
    for turn in (rotate, rotate_naive):
        torch.testing.assert_close(turn(x_BSHC, rope).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("turn", [rotate_naive, rotate])
def test_the_dims_behind_the_rotated_ones_pass(turn: Callable[..., Tensor]) -> None:
    # One pair of a head of 5: at position 1 its angle is 1, and (1, 2) becomes
    # (cos 1 - 2 sin 1, 2 cos 1 + sin 1); 3, 4 and 5 stay.
    rope = rotary(torch.tensor([1]), 2, base=50.0)
    found = turn(torch.tensor([1.0, 2, 3, 4, 5]).view(1, 1, 1, 5), rope).flatten()
    cos, sin = math.cos(1), math.sin(1)
    expected = torch.tensor([cos - 2 * sin, 2 * cos + sin, 3, 4, 5])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("head_dim", "rotated"), [(2, 2), (6, 6), (8, 8), (8, 4), (7, 6)])
def test_rotate_equals_naive_in_values_and_gradients(head_dim: int, rotated: int) -> None:
    torch.manual_seed(0)
    rope = rotary(torch.arange(3, 10), rotated, base=50.0)
    # As the layer hands it over: a slice of a wider tensor.
    x_BSHC = torch.randn(2, 7, 5, head_dim)[:, :, :3].requires_grad_()
    grad_BSHC = torch.randn(2, 7, 3, head_dim)
    fast, slow = rotate(x_BSHC, rope), rotate_naive(x_BSHC, rope)
    torch.testing.assert_close(fast, slow)
    (found,) = torch.autograd.grad(fast, x_BSHC, grad_BSHC)
    (expected,) = torch.autograd.grad(slow, x_BSHC, grad_BSHC)
    torch.testing.assert_close(found, expected)
    (ones,) = torch.autograd.grad(rotate(x_BSHC, rope).sum(), x_BSHC)
    (expected,) = torch.autograd.grad(rotate_naive(x_BSHC, rope).sum(), x_BSHC)
    torch.testing.assert_close(ones, expected)


def test_the_input_is_left_as_it_was() -> None:
    rope = rotary(torch.arange(4), 6, 50.0)
    x_BSHC = torch.randn(2, 4, 3, 6)
    before = x_BSHC.clone()
    rotate(x_BSHC, rope)
    assert torch.equal(x_BSHC, before)


def test_angles_in_bf16_turn_in_bf16_and_round_each_product() -> None:
    rope = rotary(torch.arange(1000, 1004), 8, 10_000.0)
    x_BSHC = torch.randn(2, 4, 3, 8).bfloat16()
    cos_S1C = rope.cos_SC.bfloat16()[:, None]
    sin_S1C = rope.sin_SP.repeat(1, 2).bfloat16()[:, None]
    first, second = x_BSHC.chunk(2, -1)
    # As transformers writes it.
    expected = x_BSHC * cos_S1C + torch.cat([-second, first], -1) * sin_S1C
    assert torch.equal(rotate(x_BSHC, rope.to(torch.bfloat16)), expected)


def test_bf16_is_turned_in_fp32_and_rounded_once() -> None:
    rope = rotary(torch.arange(1000, 1004), 8, 10_000.0)
    x_BSHC = torch.randn(2, 4, 3, 8).bfloat16()
    turned = rotate(x_BSHC, rope)
    assert turned.dtype == torch.bfloat16
    # Two orders of addition may round to neighbours: one bf16 step, 2^-7 of a value.
    torch.testing.assert_close(
        turned.float(), rotate_naive(x_BSHC, rope).float(), rtol=2**-7, atol=1e-6
    )


def test_a_turn_keeps_length_and_scores_know_distances_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)

    def at(x: Tensor, position: int) -> Tensor:
        rope = rotary(torch.tensor([position]), 8, 100.0)
        return rotate(x.view(1, 1, 1, 8), rope).flatten()

    assert at(q, 17).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
    near = (at(q, 7) @ at(k, 3)).item()
    assert near == pytest.approx((at(q, 107) @ at(k, 103)).item(), rel=1e-3, abs=1e-4)
    assert near != pytest.approx((at(q, 7) @ at(k, 4)).item(), rel=1e-3)


def test_longrope_by_hand() -> None:
    # Base 100, 2 pairs: plain frequencies 1 and 1/10. Within 4 positions over 2 and 4: 1/2, 1/40,
    # sines and cosines times 3; position 4 is the fifth, and beyond: over 5 and 8, times 7.
    scaling = LongRopeScaling(
        short=(2.0, 4.0),
        long=(5.0, 8.0),
        original_context=4,
        short_amplitude=3.0,
        long_amplitude=7.0,
    )
    within = rotary(torch.arange(4), 4, 100.0, scaling).sin_SP[-1]
    assert within.tolist() == pytest.approx([3 * math.sin(3 / 2), 3 * math.sin(3 / 40)])
    beyond = rotary(torch.arange(5), 4, 100.0, scaling).sin_SP[3]
    assert beyond.tolist() == pytest.approx([7 * math.sin(3 / 5), 7 * math.sin(3 / 80)])
