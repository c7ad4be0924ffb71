"""T rows, N output channels, K inputs."""

import pytest
import torch

from mixtura.errors import ConfigError
from mixtura.kernels import native as native_module
from mixtura.kernels.native import instruction_sets, native, number_of
from mixtura.kernels.packed.groups import Bits, Groups, dequantise, quantise
from mixtura.kernels.packed.linear import (
    arithmetic_of,
    packed_linear,
    packed_linear_naive,
    quantise_rows,
)
from mixtura.kernels.packed.tiles import tile
from mixtura.kernels.phase import PHASES, Phase

SETS = instruction_sets()
needs_native = pytest.mark.skipif(native() is None, reason="no compiled kernels here")


def test_rows_are_rounded_by_the_largest_of_each_span():
    # The largest of four is 8: 127/8 = 15.875, and 8, -4, 1, 0 give 127, -63.5, 15.9 and 0.
    q_TK, scale_TS = quantise_rows(torch.tensor([[8.0, -4.0, 1.0, 0.0]]), span=4)

    # A tie goes to the even number.
    assert q_TK.tolist() == [[127, -64, 16, 0]]
    torch.testing.assert_close(scale_TS, torch.tensor([[8 / 127]]))


def test_by_hand():
    # One channel: 31 weights of 0 and one of 3 times the scale 0.5, and x of 2 there: 1.5 * 2 = 3.
    q_NK = torch.zeros(1, 32, dtype=torch.int8)
    q_NK[0, 5] = 3
    groups = Groups(q_NK, torch.tensor([[0.5]], dtype=torch.float16), 4)
    x_TK = torch.zeros(1, 32)
    x_TK[0, 5] = 2.0

    for phase in PHASES:
        y_TN = packed_linear(x_TK, tile(groups), 1, 4, phase, torch.tensor([10.0]))
        torch.testing.assert_close(y_TN, torch.tensor([[13.0]]))


@needs_native
@pytest.mark.parametrize(("bits", "expected"), [(4, 254.0), (8, 254.75)])
def test_with_eight_bits_what_the_first_term_leaves_is_a_second(bits: Bits, expected: float):
    # One channel of weights 2, and x of 127 and 0.375: the first term's scale is 127/127 = 1, and
    # it has 127 and 0. It leaves 0.375, which the second has whole. 2 * 127.375 = 254.75.
    groups = Groups(
        torch.full((1, 32), 2, dtype=torch.int8), torch.ones(1, 1, dtype=torch.float16), bits
    )
    x_TK = torch.zeros(1, 32)
    x_TK[0, 3], x_TK[0, 20] = 127.0, 0.375

    assert packed_linear(x_TK, tile(groups), 1, bits, "decode").item() == expected
    assert packed_linear_naive(x_TK, groups, "int8x32").item() == expected


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phase", list(PHASES))
# 2112 inputs are two groups more than the tiles of AMX take at once.
@pytest.mark.parametrize(("channels", "inputs"), [(33, 96), (64, 416), (1, 32), (40, 2112)])
def test_every_instruction_set_is_its_twin(bits: Bits, phase: Phase, channels: int, inputs: int):
    torch.manual_seed(channels)
    groups = quantise(torch.randn(channels, inputs), bits)
    tiles = tile(groups)
    bias_N = torch.randn(channels)
    for kernels in SETS:
        for rows in [*range(18), 40, 300]:
            x_TK = torch.randn(rows, inputs)
            naive_TN = packed_linear_naive(x_TK, groups, arithmetic_of(phase, kernels), bias_N)
            y_TN = packed_linear(x_TK, tiles, channels, bits, phase, bias_N, kernels)
            # Integers within a group are exact; some dozens of fp32 sums of size 10 are not.
            torch.testing.assert_close(y_TN, naive_TN, rtol=1e-4, atol=1e-4, msg=kernels)


@needs_native
@pytest.mark.parametrize("phase", list(PHASES))
def test_two_terms_lose_a_hundredth_of_what_one_loses(phase: Phase):
    # The same weights, once as 8 bits. A term is off by up to 1/254 of a span's largest, and a
    # second one by up to 1/254 of that: measured 5e-3 and 2e-5 of the product, by spans of 128
    # 7e-3 and 3e-5.
    groups = quantise(torch.randn(64, 1024), 4)
    eight, x_TK = groups.in_eight_bits(), torch.randn(20, 1024)
    exact_TN = x_TK.double() @ dequantise(groups).double().T
    for kernels in SETS:
        if arithmetic_of(phase, kernels) == "bf16":
            continue
        one_TN = packed_linear(x_TK, tile(groups), 64, 4, phase, None, kernels)
        two_TN = packed_linear(x_TK, tile(eight), 64, 8, phase, None, kernels)
        assert 3e-3 < (one_TN - exact_TN).norm() / exact_TN.norm() < 1e-2, kernels
        assert (two_TN - exact_TN).norm() / exact_TN.norm() < 5e-5, kernels


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phase", list(PHASES))
def test_a_row_does_not_depend_on_its_neighbours(bits: Bits, phase: Phase):
    groups = quantise(torch.randn(70, 160), bits)
    x_TK = torch.randn(41, 160)
    for kernels in SETS:
        whole_TN = packed_linear(x_TK, tile(groups), 70, bits, phase, None, kernels)
        for first, last in ((0, 1), (3, 5), (10, 17), (20, 41)):
            part_TN = packed_linear(x_TK[first:last], tile(groups), 70, bits, phase, None, kernels)
            assert torch.equal(part_TN, whole_TN[first:last]), kernels


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phase", list(PHASES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bits: Bits, phase: Phase, bad: float):
    groups = quantise(torch.randn(32, 64), bits)
    x_TK = torch.randn(2, 64)
    x_TK[1, 7] = bad

    for kernels in SETS or ("auto",):
        y_TN = packed_linear(x_TK, tile(groups), 32, bits, phase, None, kernels)
        assert y_TN[0].isfinite().all(), kernels
        assert not y_TN[1].isfinite().any(), kernels


@needs_native
def test_bf16_rows_and_strided_ones():
    groups = quantise(torch.randn(32, 64), 8)
    x_TK = torch.randn(4, 128).bfloat16()[:, ::2]

    y_TN = packed_linear(x_TK, tile(groups), 32, 8, "decode")

    torch.testing.assert_close(y_TN, packed_linear_naive(x_TK.float(), groups, "int8x32"))


def test_too_few_bytes_are_refused():
    groups = quantise(torch.randn(32, 64), 4)

    with pytest.raises(ValueError, match="1152 bytes for 32 channels of 64 inputs"):
        packed_linear(torch.randn(1, 64), tile(groups)[:-64], 32, 4, "decode")


def test_a_missing_instruction_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native_module, "instruction_sets", lambda: ("plain", "avx2"))

    with pytest.raises(ConfigError, match=r"kernels=amx .* offers plain, avx2"):
        number_of("amx")


def test_without_the_compiled_module_pytorch_serves(monkeypatch: pytest.MonkeyPatch):
    groups = quantise(torch.randn(33, 96), 4)
    x_TK = torch.randn(5, 96)
    monkeypatch.setattr("mixtura.kernels.packed.linear.native", lambda: None)

    y_TN = packed_linear(x_TK, tile(groups), 33, 4, "decode")

    torch.testing.assert_close(y_TN, x_TK @ dequantise(groups).T)
    assert arithmetic_of("decode") == arithmetic_of("prefill") == "fp32"


def test_compiles_whole():
    groups = quantise(torch.randn(32, 64), 4)
    tiles = tile(groups)

    def twice(x_TK: torch.Tensor) -> torch.Tensor:
        return 2 * packed_linear(x_TK, tiles, 32, 4, "decode")

    x_TK = torch.randn(3, 64)
    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x_TK), twice(x_TK))
