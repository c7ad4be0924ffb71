"""The short convolution beside its slow twin.

B sequences, S tokens, D channels, K taps, W = K - 1 tokens before, R rows.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.kernels.short_conv import Taps, short_conv, short_conv_naive, short_conv_rows


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_three_tokens_by_hand() -> None:
    # Weights 1, 10, 100 from the oldest tap to the newest; before: 1, 2; then 3, 4, 5.
    # 1 + 20 + 300 = 321; 2 + 30 + 400 = 432; 3 + 40 + 500 = 543.
    x_SD, before_WD = torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[1.0], [2.0]])
    weight_DK = torch.tensor([[1.0, 10.0, 100.0]])
    out_SD, after_WD = short_conv_naive(x_SD, weight_DK, None, before_WD)
    assert out_SD[:, 0].tolist() == [321, 432, 543]
    assert after_WD[:, 0].tolist() == [4, 5]


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_short_conv_values_and_gradients(kernel: int, length: int, bias: bool) -> None:
    given = [
        sample(2, length, 5),
        sample(5, kernel, seed=1),
        sample(5, seed=2) if bias else torch.zeros(5, dtype=torch.float64),
        sample(2, kernel - 1, 5, seed=3),
    ]
    into_BSD, into_BWD = sample(2, length, 5, seed=4), sample(2, kernel - 1, 5, seed=5)
    grads = []
    for naive in (False, True):
        x_BSD, weight_DK, bias_D, before_BWD = (one.clone().requires_grad_() for one in given)
        if naive:
            each = [
                short_conv_naive(x_SD, weight_DK, bias_D, before_WD)
                for x_SD, before_WD in zip(x_BSD, before_BWD, strict=True)
            ]
            out_BSD, after_BWD = (torch.stack(one) for one in zip(*each, strict=True))
        else:
            out_BSD, after_BWD = short_conv(x_BSD, weight_DK, bias_D, before_BWD)
        loss = (out_BSD * into_BSD).sum() + (after_BWD * into_BWD).sum()
        inputs = (x_BSD, weight_DK, bias_D, before_BWD)
        grads.append([out_BSD, after_BWD, *torch.autograd.grad(loss, inputs)])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from([2, 3, 5]))
@settings(max_examples=30, deadline=None)
def test_short_conv_is_the_same_in_any_parts(parts: list[int], kernel: int) -> None:
    x_BSD = sample(1, sum(parts), 19, dtype=torch.float32)
    weight_DK = sample(19, kernel, seed=1, dtype=torch.float32)
    whole = short_conv(x_BSD, weight_DK)
    before_BWD, outputs = None, []
    for part_BSD in x_BSD.split(parts, 1):
        out_BSD, before_BWD = short_conv(part_BSD, weight_DK, None, before_BWD)
        outputs.append(out_BSD)
    assert torch.equal(torch.cat(outputs, 1), whole.out_BSD)
    assert before_BWD is not None
    assert torch.equal(before_BWD, whole.after_BWD)


@given(st.lists(st.booleans(), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_short_conv_skips_padding_anywhere(valid: list[bool]) -> None:
    valid_BS = torch.tensor([valid, [True] * len(valid)])
    x_BSD = sample(2, len(valid), 3).masked_fill(~valid_BS[..., None], 1e6)
    weight_DK, before_BWD = sample(3, 3, seed=1), sample(2, 2, 3, seed=2)
    found = short_conv(x_BSD, weight_DK, None, before_BWD, valid_BS)
    for row, valid_S in enumerate(valid_BS):
        if not valid_S.any():
            assert torch.equal(found.after_BWD[row], before_BWD[row])
            continue
        out_SD, after_WD = short_conv_naive(x_BSD[row, valid_S], weight_DK, None, before_BWD[row])
        torch.testing.assert_close(found.out_BSD[row, valid_S], out_SD)
        torch.testing.assert_close(found.after_BWD[row], after_WD)


def test_short_conv_rows_of_several_sequences() -> None:
    # Slots 3, 0 and 2 of 4, with 2, 1 and 4 rows, mixed; slot 1 is not touched.
    rows_of = {3: [0, 4], 0: [1], 2: [2, 3, 5, 6]}
    dtype = torch.float32
    x_RD, weight_DK, bias_D = sample(7, 17, dtype=dtype), sample(17, 3, dtype=dtype), sample(17)
    bias_D = bias_D.to(dtype)
    held_SWD = sample(4, 2, 17, seed=3, dtype=dtype)
    before_SWD = held_SWD.clone()
    taps = Taps.of(rows_of, 2, x_RD.device)
    out_RD = short_conv_rows(x_RD, held_SWD, taps, weight_DK, bias_D)
    assert torch.equal(held_SWD[1], before_SWD[1])
    for slot, rows in rows_of.items():
        found, after = short_conv_naive(x_RD[rows], weight_DK, bias_D, before_SWD[slot])
        assert torch.equal(out_RD[rows], found)
        assert torch.equal(held_SWD[slot], after)
    chosen_N = torch.tensor([6, 0])
    some_ND = short_conv_rows(x_RD, before_SWD, taps, weight_DK, bias_D, chosen_N)
    assert torch.equal(some_ND, out_RD[chosen_N])
    assert torch.equal(before_SWD, held_SWD)


def test_short_conv_in_bf16_sums_in_fp32() -> None:
    x_BSD, weight_DK = sample(1, 5, 8).bfloat16(), sample(8, 3, seed=1).bfloat16()
    found = short_conv(x_BSD, weight_DK)
    wide = short_conv(x_BSD.float(), weight_DK.float())
    assert found.out_BSD.dtype == torch.bfloat16
    assert torch.equal(found.out_BSD, wide.out_BSD.bfloat16())
    assert torch.equal(found.after_BWD, wide.after_BWD)
