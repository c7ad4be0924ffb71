"""Groups of 32 weights with one fp16 scale: values by hand, error, and what is refused.

N output channels, K inputs.
"""

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.native import instruction_sets, native
from mixtura.kernels.packed.groups import Bits, Groups, dequantise, limits, quantise, quantise_naive


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def error(groups: Groups, w_NK: Tensor) -> float:
    return float((dequantise(groups) - w_NK).double().square().sum())


def llama_error(w_NK: Tensor, kind: gguf.GGMLQuantizationType) -> float:
    """Of llama.cpp's rule: the weight of the largest size decides the scale."""
    again = gguf.quants.dequantize(gguf.quants.quantize(w_NK.numpy(), kind), kind)
    return float((torch.from_numpy(again) - w_NK).double().square().sum())


def test_dequantise_by_hand() -> None:
    # Two groups: q = 3 times 0.5 is 1.5; q = -8 times -2 is 16.
    q_NK = torch.tensor([[3] * 32 + [-8] * 32], dtype=torch.int8)
    groups = Groups(q_NK, torch.tensor([[0.5, -2.0]]).half(), 4)
    assert dequantise(groups).tolist() == [[1.5] * 32 + [16.0] * 32]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_lopsided_range_is_used_at_both_ends(sign: int) -> None:
    # -8..7 times 0.25, some twice, is kept exactly; so is its mirror image, by a scale of -0.25.
    w_NK = sign * 0.25 * torch.tensor([[*range(-8, 8), *range(-8, 8)]]).float()
    groups = quantise(w_NK, 4)
    assert torch.equal(dequantise(groups), w_NK)
    assert groups.scale_NG.item() == sign * 0.25


def test_eight_bits_keep_what_they_can_hold() -> None:
    # 127, -126, ... in steps of 8, times 2^-9: all are whole multiples of one scale.
    w_NK = torch.tensor([[127.0, *(-126.0 + 8 * i for i in range(31))]]) * 2**-9
    groups = quantise(w_NK, 8)
    assert torch.equal(dequantise(groups), w_NK)
    assert groups.q_NK[0, :2].tolist() == [127, -126]


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_lie_within_their_range(bits: Bits) -> None:
    low, high = limits(bits)
    q_NK = quantise(normal(64, 256), bits).q_NK
    assert (int(q_NK.min()), int(q_NK.max())) == (low, high)


def samples() -> dict[str, Tensor]:
    flat = torch.rand(64, 1024, generator=torch.Generator().manual_seed(1))
    # Student's t with 3 degrees of freedom: a normal over the root of a mean of 3 squares.
    tail = normal(64, 1024) / normal(3, 64, 1024, seed=2).square().mean(0).sqrt()
    return {"normal": normal(64, 1024), "heavy-tailed": tail, "uniform": flat - 0.5}


@pytest.mark.parametrize("kind", list(samples()))
def test_error_is_below_that_of_llama_cpp(kind: str) -> None:
    w_NK = samples()[kind]
    # Measured: 0.90, 0.97 and 0.82 of Q4_0's squared error; 0.84, 0.90 and 0.82 of Q8_0's.
    bound = 0.98 * llama_error(w_NK, gguf.GGMLQuantizationType.Q4_0)
    assert error(quantise(w_NK, 4), w_NK) < bound
    bound = 0.92 * llama_error(w_NK, gguf.GGMLQuantizationType.Q8_0)
    assert error(quantise(w_NK, 8), w_NK) < bound


def least_error(w_C: Tensor, bits: Bits) -> float:
    """Of one group: every fp16 scale near one of many, with the nearest number of each weight."""
    low, high = limits(bits)
    size = float(w_C.abs().max())
    scale_S = torch.linspace(size / (high + 3), size / (high * 0.6), 4000)
    scale_S1 = torch.cat([scale_S, -scale_S]).half().float().unique()[:, None]
    w_SC = (w_C / scale_S1).round().clamp(low, high) * scale_S1
    return float((w_SC - w_C).square().sum(1).min())


@pytest.mark.parametrize(("bits", "bound"), [(4, 1.06), (8, 1.15)])
def test_error_is_near_the_least_of_all_scales(bits: Bits, bound: float) -> None:
    w_NK = normal(8, 256)
    least = sum(least_error(w_C, bits) for w_C in w_NK.view(-1, 32))
    assert error(quantise(w_NK, bits), w_NK) < bound * least


@given(
    st.integers(0, 5), st.integers(1, 3), st.sampled_from([4, 8]), st.floats(-30, 12), st.integers()
)
def test_no_weight_is_further_off_than_half_a_step(
    rows: int, groups: int, bits: Bits, exponent: float, seed: int
) -> None:
    w_NK = normal(rows, 32 * groups, seed=seed % 2**31) * 2**exponent
    found = quantise(w_NK, bits)
    low, high = limits(bits)
    scale_NK = found.scale_NG.float().repeat_interleave(32, 1)
    inside = (found.q_NK > low) & (found.q_NK < high)
    off_NK = (dequantise(found) - w_NK).abs()
    assert bool((off_NK <= scale_NK.abs() * 0.5001)[inside].all())


def test_chunks_leave_no_seam() -> None:
    # 8192 groups are worked on at once: 300 rows of 32 groups are 9600.
    w_NK = normal(300, 1024)
    whole, tail = quantise(w_NK, 4), quantise(w_NK[250:], 4)
    assert torch.equal(whole.q_NK[250:], tail.q_NK)
    assert torch.equal(whole.scale_NG[250:], tail.scale_NG)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_is_taken(dtype: torch.dtype) -> None:
    w_NK = normal(4, 64).to(dtype)
    assert torch.equal(quantise(w_NK, 4).q_NK, quantise(w_NK.float(), 4).q_NK)


def test_rows_that_are_not_contiguous_are_taken() -> None:
    w_KN = normal(64, 5)
    assert torch.equal(quantise(w_KN.T, 4).q_NK, quantise(w_KN.T.contiguous(), 4).q_NK)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero(bits: Bits) -> None:
    w_NK = torch.cat([torch.zeros(1, 32), normal(1, 32)])
    groups = quantise(w_NK, bits)
    assert dequantise(groups)[0].count_nonzero() == 0
    assert bool(groups.scale_NG.isfinite().all())


def test_tiny_weights_take_a_subnormal_scale() -> None:
    # 2^-22 is 4 times the least fp16 number: q = 4. The scale of the largest, 2^-22 / 8, is none.
    w_NK = torch.full((1, 32), 2.0**-22)
    w_NK[0, 0] = -(2.0**-22)
    assert torch.equal(dequantise(quantise(w_NK, 4)), w_NK)
    # Below half of the least scale nothing is left, and no scale is 0 or NaN.
    groups = quantise(torch.full((1, 32), 2.0**-26), 4)
    assert dequantise(groups).tolist() == [[0.0] * 32]
    assert float(groups.scale_NG.abs()) > 0


def test_large_weights_are_taken_up_to_the_largest_scale() -> None:
    # 65504 is fp16's largest; times 7 is 458528. A scale is rounded to 11 bits.
    w_NK = torch.full((1, 32), 458_528.0)
    torch.testing.assert_close(dequantise(quantise(w_NK, 4)), w_NK, rtol=2**-11, atol=0)
    with pytest.raises(ConfigError, match=r"layer 3's w: row 2 .* of size 4\.6e\+05, above 4\.585"):
        quantise(torch.cat([normal(2, 64), torch.full((1, 64), 460_000.0)]), 4, "layer 3's w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_is_refused_with_its_row(bad: float, bits: Bits) -> None:
    w_NK = normal(5, 64)
    w_NK[3, 40] = bad
    with pytest.raises(ConfigError, match="qkv: row 3 holds a weight that is not finite"):
        quantise(w_NK, bits, "qkv")


def test_a_width_that_32_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="out: a width of 48 does not divide into groups of 32"):
        quantise(normal(2, 48), 4, "out")


def test_four_bits_in_eight_are_the_same_weights() -> None:
    groups = quantise(normal(3, 64), 4)
    wide = groups.in_eight_bits()
    assert wide.bits == 8
    assert torch.equal(dequantise(wide), dequantise(groups))


def test_rows_are_those_of_the_weights() -> None:
    groups = quantise(normal(5, 64), 4)
    row_R = torch.tensor([4, 0])
    assert torch.equal(dequantise(groups.rows(row_R)), dequantise(groups)[row_R])
    assert groups.rows(slice(1, 3)).shape == (2, 64)


def awkward(rows: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Ties, zeros, subnormal numbers, and weights that stand out, beside normal ones."""
    w_NK = normal(rows, inputs)
    w_NK[1] = w_NK[1].mul(4).round().div(8)
    w_NK[2] = 0
    w_NK[3] *= 2.0**-120
    w_NK[4] *= 2.0**-24
    w_NK[5] = w_NK[5] ** 7
    return w_NK.to(dtype)


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [32, 160, 992])
def test_every_instruction_set_chooses_the_same(bits: Bits, dtype: torch.dtype, inputs: int):
    # 7 rows of 1, 5 and 31 groups: 7, 35 and 217, which no number of lanes divides.
    w_NK = awkward(7, inputs, dtype)
    plain = quantise(w_NK, bits, kernels="plain")
    assert bool((plain.scale_NG != 0).all())
    for kernels in instruction_sets():
        found = quantise(w_NK, bits, kernels=kernels)
        assert torch.equal(found.q_NK, plain.q_NK), kernels
        assert torch.equal(found.scale_NG, plain.scale_NG), kernels


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -9e6])
@pytest.mark.parametrize("column", [0, 1, 31, 95])
def test_every_instruction_set_refuses_the_same(bad: float, column: int):
    # 127 times fp16's largest scale is 8.3 million.
    w_NK = normal(5, 96)
    w_NK[3, column] = bad
    for kernels in instruction_sets():
        with pytest.raises(ConfigError, match="w: row 3 holds a weight"):
            quantise(w_NK, 8, "w", kernels)


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("power", [1, 3])
def test_compiled_kernels_choose_as_their_twin_does(bits: Bits, power: int):
    torch.manual_seed(power)
    w_NK = torch.randn(64, 512) ** power
    w_NK[5] = 0
    w_NK[6] *= 1e-8

    compiled, naive = quantise(w_NK, bits), quantise_naive(w_NK, bits)

    # Sums in another order let either of two scales win that are nearly as good.
    assert error(compiled, w_NK) == pytest.approx(error(naive, w_NK), rel=2e-3)
    assert float((compiled.scale_NG == naive.scale_NG).float().mean()) > 0.95
