"""One-row and few-row bf16 products against the same sums in fp32.

N rows, E experts, I inputs, O outputs, K experts of one token, D width, F expert width, H = 2F.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.experts_ffn import bf16_rows, bf16_takes, one_token_swiglu

pytestmark = pytest.mark.skipif(
    not bf16_takes(torch.bfloat16, torch.device("cpu")),
    reason="this processor or this torch has no bf16 product of MKL's",
)


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def rows_naive(rows_NI: Tensor, weight_EIO: Tensor, count_E: list[int]) -> Tensor:
    parts = rows_NI.float().split([*count_E, len(rows_NI) - sum(count_E)])
    products = [part @ weight.float() for part, weight in zip(parts, weight_EIO, strict=False)]
    return torch.cat([*products, parts[-1].new_zeros(len(parts[-1]), weight_EIO.shape[2])])


def one_token_naive(
    x_D: Tensor, expert_K: list[int], weight_K: list[float], w_in_EHD: Tensor, w_out_EDF: Tensor
) -> Tensor:
    y_D = torch.zeros(len(x_D))
    for expert, weight in zip(expert_K, weight_K, strict=True):
        if expert < len(w_in_EHD):
            gate_F, up_F = (w_in_EHD[expert].float() @ x_D.float()).chunk(2)
            y_D += weight * (w_out_EDF[expert].float() @ (F.silu(gate_F) * up_F))
    return y_D


def test_rows_by_hand() -> None:
    # Expert 0: 1*2 + 2*3 = 8. Expert 1: (3*1 + 0*1) = 3 and (1*1 + 1*1) = 2. The last row is lost.
    rows_NI = torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0], [9.0, 9.0]]).bfloat16()
    weight_EIO = torch.tensor([[[2.0], [3.0]], [[1.0], [1.0]]]).bfloat16()
    assert bf16_rows(rows_NI, weight_EIO, [1, 2]).flatten().tolist() == [8, 3, 2, 0]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("counts", [[1, 0, 3, 2], [0, 0, 0, 0], [0, 7, 0, 0]])
@pytest.mark.parametrize("widths", [(5, 7), (32, 48), (1, 1)])
def test_rows_equal_naive(counts: list[int], widths: tuple[int, int], transposed: bool) -> None:
    inputs, outputs = widths
    weight_EIO = normal(4, outputs, inputs).mT if transposed else normal(4, inputs, outputs)
    rows_NI = normal(sum(counts) + 2, inputs, seed=1)
    found_NO = bf16_rows(rows_NI, weight_EIO, counts)
    assert found_NO.dtype == torch.bfloat16
    expected_NO = rows_naive(rows_NI, weight_EIO, counts)
    # The sums are fp32 and rounded once: within half a unit in the last of 8 bits.
    torch.testing.assert_close(found_NO.float(), expected_NO, rtol=2**-8, atol=1e-5)


def test_rows_of_weights_in_neither_order() -> None:
    weight_EIO = normal(4, 6, 10)[:, ::2, ::2]
    rows_NI = normal(4, 3)
    expected_NO = rows_naive(rows_NI, weight_EIO, [1, 1, 1, 1])
    found_NO = bf16_rows(rows_NI, weight_EIO, [1, 1, 1, 1])
    torch.testing.assert_close(found_NO.float(), expected_NO, rtol=2**-8, atol=1e-5)


def test_one_token_by_hand() -> None:
    # Expert 1: gate 1, up 4: silu(1) = 0.7311, times 4 is 2.924; out 2; weight 0.5: 2.924.
    y_D = one_token_swiglu(
        torch.tensor([1.0]).bfloat16(),
        [1],
        [0.5],
        torch.tensor([[[0.0], [0.0]], [[1.0], [4.0]]]).bfloat16(),
        torch.tensor([[[0.0]], [[2.0]]]).bfloat16(),
    )
    assert y_D.item() == pytest.approx(4 / (1 + math.exp(-1)), rel=2**-7)


@pytest.mark.parametrize("experts", [[2], [3, 0, 1], [1, 4, 2], [4, 4]])
@pytest.mark.parametrize("widths", [(5, 7), (32, 48)])
def test_one_token_equals_naive(experts: list[int], widths: tuple[int, int]) -> None:
    width, hidden = widths
    x_D, w_in_EHD, w_out_EDF = (
        normal(width),
        normal(4, 2 * hidden, width, seed=1),
        normal(4, width, hidden, seed=2),
    )
    weights = [0.5, 0.3, 0.2][: len(experts)]
    found_D = one_token_swiglu(x_D, experts, weights, w_in_EHD, w_out_EDF)
    expected_D = one_token_naive(x_D, experts, weights, w_in_EHD, w_out_EDF)
    scale = expected_D.abs().max().item()
    torch.testing.assert_close(found_D.float(), expected_D, rtol=0, atol=scale * 2**-6)


def test_only_bf16_on_a_cpu_is_taken() -> None:
    assert not bf16_takes(torch.float32, torch.device("cpu"))
    assert not bf16_takes(torch.bfloat16, torch.device("cuda"))
