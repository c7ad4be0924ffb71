"""A row's product does not depend on the rows beside it. T rows, D inputs, N outputs, A heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.row_linear import (
    row_linear,
    row_linear_of_heads,
    row_sigmoid,
    rows_alone,
)


def random(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize(("inputs", "outputs"), [(2048, 64), (576, 8), (33, 1), (6, 8), (7, 9)])
def test_rows_are_the_same_to_the_bit_among_others(inputs: int, outputs: int) -> None:
    x_TD, weight_ND = random(40, inputs), random(outputs, inputs)
    with rows_alone():
        alone_TN = torch.cat([row_linear(x_TD[row : row + 1], weight_ND) for row in range(40)])
        for rows in range(41):
            assert torch.equal(row_linear(x_TD[:rows], weight_ND), alone_TN[:rows])
    torch.testing.assert_close(alone_TN, F.linear(x_TD, weight_ND), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("numbers", "stride"), [(1, 8), (3, 3), (24, 24), (5, 7)])
def test_row_sigmoid_is_the_same_to_the_bit_among_others(numbers: int, stride: int) -> None:
    # With gaps between rows too, which a product may leave: torch computes those number by number.
    x_TN = random(40, stride)[:, :numbers]
    with rows_alone():
        alone_TN = torch.cat([row_sigmoid(x_TN[row : row + 1]) for row in range(40)])
        for rows in range(41):
            assert torch.equal(row_sigmoid(x_TN[:rows]), alone_TN[:rows])
    torch.testing.assert_close(alone_TN, x_TN.sigmoid())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 512), (6, 8), (16, 7), (7, 5)])
def test_heads_are_the_same_to_the_bit_among_others(
    inputs: int, outputs: int, transposed: bool
) -> None:
    x_TAD, weight_AND = random(40, 3, inputs), random(3, outputs, inputs)
    if transposed:
        weight_AND = weight_AND.mT.contiguous().mT
    with rows_alone():
        alone = [row_linear_of_heads(x_TAD[row : row + 1], weight_AND) for row in range(40)]
        for rows in (0, 1, 2, 15, 16, 17, 40):
            found_TAN = row_linear_of_heads(x_TAD[:rows], weight_AND)
            assert torch.equal(
                found_TAN, torch.cat([*alone[:rows], x_TAD.new_empty(0, 3, outputs)])
            )
    expected_TAN = torch.einsum("tad,and->tan", x_TAD, weight_AND)
    torch.testing.assert_close(torch.cat(alone), expected_TAN, rtol=1e-4, atol=1e-3)


def test_outside_it_is_torchs_own() -> None:
    x_TD, weight_ND = random(5, 64), random(3, 64)
    assert torch.equal(row_linear(x_TD, weight_ND), F.linear(x_TD, weight_ND))
    weight_ND.requires_grad_()
    row_linear(x_TD, weight_ND).sum().backward()
    torch.testing.assert_close(weight_ND.grad, x_TD.sum(0).expand(3, -1))
