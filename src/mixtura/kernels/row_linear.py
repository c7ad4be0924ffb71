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
    return _in_blocks(x_TD, lambda block_TD: F.linear(block_TD, weight_ND, bias_N))


def row_sigmoid(x_TN: Tensor) -> Tensor:
    """The sigmoid of each number.

    The numbers are computed in blocks of rows too, because torch's vector loop and its loop for the
    remaining numbers differ in the last bit.
    """
    return _in_blocks(x_TN, torch.sigmoid)


def row_linear_of_heads(x_TAD: Tensor, weight_AND: Tensor) -> Tensor:
    """x W^T for each head separately, (T, A, N)."""

    def product(block_TAD: Tensor) -> Tensor:
        return torch.bmm(block_TAD.transpose(0, 1), weight_AND.mT).transpose(0, 1)

    return _in_blocks(x_TAD, product)


def _in_blocks(x_T: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product` of the rows, in blocks of equal size within `rows_alone()`."""
    rows = len(x_T)
    if not _ALONE.get() or rows == 0:
        return product(x_T)
    missing = -rows % _BLOCK
    if missing:
        x_T = torch.cat([x_T, x_T.new_zeros(missing, *x_T.shape[1:])])
    if len(x_T) == _BLOCK:
        return product(x_T)[:rows]
    return torch.cat([product(block) for block in x_T.split(_BLOCK)])[:rows]
