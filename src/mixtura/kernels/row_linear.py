"""Matrix products in which the result of a row does not depend on the number of rows.

A BLAS sums in a different order for one row than for many rows. Within `rows_alone()`, rows are
therefore multiplied in blocks of equal size, the last block padded with zeros, so that every row is
summed in the same order. T rows, D inputs, N outputs, A heads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 16
# The dims of a matrix are padded to a multiple of this. With other sizes, products of MKL on AMD
# processors sum a row in an order that depends on the row's place in the block.
_EVEN = 8
_ALONE = ContextVar("rows_alone", default=False)


@contextmanager
def rows_alone() -> Iterator[None]:
    """A context manager: inside the block a row's product does not depend on the other rows."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def row_linear(x_TD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b, (T, N)."""
    if not _ALONE.get():
        return F.linear(x_TD, weight_ND, bias_N)
    outputs = len(weight_ND)
    x_TD, weight_ND = _even(x_TD, weight_ND)
    if bias_N is not None:
        bias_N = F.pad(bias_N, (0, len(weight_ND) - outputs))
    return _in_blocks(x_TD, lambda block_TD: F.linear(block_TD, weight_ND, bias_N))[:, :outputs]


def row_sigmoid(x_TN: Tensor) -> Tensor:
    """The sigmoid of each number.

    The numbers are computed in blocks of rows too, because the results of torch's vector loop and
    of its loop for the remaining numbers differ in the last bit.
    """
    return _in_blocks(x_TN, torch.sigmoid)


def row_linear_of_heads(x_TAD: Tensor, weight_AND: Tensor) -> Tensor:
    """x W^T for each head separately, (T, A, N)."""
    outputs = weight_AND.shape[1]
    if _ALONE.get():
        x_TAD, weight_AND = _even(x_TAD, weight_AND)

    def product(block_TAD: Tensor) -> Tensor:
        return torch.bmm(block_TAD.transpose(0, 1), weight_AND.mT).transpose(0, 1)

    return _in_blocks(x_TAD, product)[..., :outputs]


def _even(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with zeros at the end of the dims N and D of the weight and D of x."""
    outputs, inputs = (-size % _EVEN for size in weight.shape[-2:])
    if not outputs and not inputs:
        return x, weight
    return F.pad(x, (0, inputs)), F.pad(weight, (0, inputs, 0, outputs))


def _in_blocks(x_T: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product` of the rows, in blocks of equal size within `rows_alone()`."""
    rows = len(x_T)
    if not _ALONE.get() or rows == 0:
        return product(x_T)
    # torch computes a tensor with gaps number by number, and the last bit may differ then.
    x_T = x_T.contiguous()
    missing = -rows % _BLOCK
    if missing:
        x_T = torch.cat([x_T, x_T.new_zeros(missing, *x_T.shape[1:])])
    if len(x_T) == _BLOCK:
        return product(x_T)[:rows]
    return torch.cat([product(block) for block in x_T.split(_BLOCK)])[:rows]
