"""Multiplies each row by one of many small gates: logits_r = weight[bank_r] x_r for row r.

A bank is one of the gates. T tokens, D width, C banks for each token, R = T*C rows, of which row r
is token r // C, G banks, E outputs of each bank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mixtura.kernels.experts_ffn import SegmentProducts, ragged_takes


def bank_linear_naive(x_TD: Tensor, weight_GED: Tensor, bank_R: Tensor) -> Tensor:
    """logits_RE: the naive twin of `bank_linear`; it copies the weights of a bank for every row."""
    x_RD = x_TD.repeat_interleave(_copies(x_TD, bank_R), 0)
    return torch.einsum("rd,red->re", x_RD, weight_GED[bank_R])


def bank_linear(x_TD: Tensor, weight_GED: Tensor, bank_R: Tensor) -> Tensor:
    """logits_RE, computed bank by bank over rows sorted by bank.

    Autocast has no effect. The number of rows of each bank is read once, which waits for the
    device.
    """
    return _BankLinear.apply(x_TD, weight_GED, bank_R)


def _copies(x_TD: Tensor, bank_R: Tensor) -> int:
    return len(bank_R) // max(len(x_TD), 1)


class _BankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_GED: Tensor, bank_R: Tensor) -> Tensor:
        copies = _copies(x_TD, bank_R)
        order_R = bank_R.argsort(stable=True)
        sorted_RD = x_TD.index_select(0, order_R // max(copies, 1))
        products = "ragged" if ragged_takes(x_TD.dtype, x_TD.device) else "loop"
        count_G = torch.bincount(bank_R, minlength=len(weight_GED))
        multiply = SegmentProducts(products, count_G, sorted_RD)
        with torch.autocast(x_TD.device.type, enabled=False):
            sorted_RE = multiply.rows(sorted_RD, weight_GED.mT)
        ctx.save_for_backward(sorted_RD, weight_GED, order_R)
        ctx.multiply, ctx.copies = multiply, copies  # pyright: ignore[reportAttributeAccessIssue]
        return torch.empty_like(sorted_RE).index_copy_(0, order_R, sorted_RE)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RE: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        sorted_RD, weight_GED, order_R = ctx.saved_tensors
        multiply: SegmentProducts = ctx.multiply
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_RE = grad_RE.index_select(0, order_R)
        grad_TD = grad_weight_GED = None
        with torch.autocast(grad_RE.device.type, enabled=False):
            if needs_x:
                sorted_grad_RD = multiply.rows(grad_RE, weight_GED)
                row_R = torch.arange(len(order_R), device=order_R.device)
                place_R = torch.empty_like(order_R).index_copy_(0, order_R, row_R)
                place_TC = place_R.view(-1, max(ctx.copies, 1))
                grad_TD = F.embedding_bag(place_TC, sorted_grad_RD, mode="sum")
            if needs_weight:
                grad_weight_GED = multiply.weights(grad_RE, sorted_RD)
        return grad_TD, grad_weight_GED, None
