"""Bring rows together by expert, and each token's results back.

T tokens, D width, E experts, K rows per token, N = T*K routed rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True, slots=True)
class Order:
    """Rows sorted by expert, stably; lost rows (expert = E) come last."""

    token_N: Tensor
    """sorted row -> token"""
    row_N: Tensor
    """sorted row -> row as routed"""
    place_TK: Tensor | None
    """token and choice -> sorted row; None where rows are not K for each token in turn"""
    count_E: Tensor
    """rows of each expert, int64"""


def order_by_expert(
    expert_N: Tensor, token_N: Tensor, num_experts: int, top_k: int | None
) -> Order:
    """Sort rows by expert. `top_k` given: row n belongs to token n // top_k."""
    # A narrow key sorts several times faster on a CPU.
    key_N = expert_N.to(torch.int16) if num_experts < 2**15 else expert_N
    row_N = key_N.sort(stable=True).indices
    count_E = expert_N.new_zeros(num_experts + 1)
    count_E.scatter_add_(0, expert_N, torch.ones_like(expert_N))
    place_TK = None
    if top_k is not None:
        place_N = torch.empty_like(row_N)
        place_N[row_N] = torch.arange(row_N.shape[0], device=row_N.device)
        place_TK = place_N.view(-1, top_k)
    return Order(token_N[row_N], row_N, place_TK, count_E[:-1])


def permute_naive(x_TD: Tensor, order: Order) -> Tensor:
    """x_ND in sorted order; the twin of `permute`."""
    return x_TD[order.token_N]


def combine_naive(y_ND: Tensor, weight_N: Tensor, order: Order, num_tokens: int) -> Tensor:
    """out_TD = sum over a token's rows of weight * y; the twin of `combine`.

    `y_ND` is in sorted order, `weight_N` as routed; a lost row's y is finite and its weight 0.
    """
    weighted_ND = y_ND * weight_N[order.row_N, None].to(y_ND.dtype)
    return y_ND.new_zeros(num_tokens, y_ND.shape[1]).index_add(0, order.token_N, weighted_ND)


def permute(x_TD: Tensor, order: Order) -> Tensor:
    """x_ND in sorted order. Its backward gathers and adds, so it is deterministic and parallel."""
    if order.place_TK is None:
        return permute_naive(x_TD, order)
    return _Permute.apply(x_TD, order.token_N, order.place_TK)


def combine(y_ND: Tensor, weight_N: Tensor, order: Order, num_tokens: int) -> Tensor:
    """As `combine_naive`, in one pass over the rows, without a weighted copy of them."""
    if order.place_TK is None:
        return combine_naive(y_ND, weight_N, order, num_tokens)
    weight_TK = weight_N.to(y_ND.dtype).view_as(order.place_TK)
    return _Combine.apply(y_ND, weight_TK, order.token_N, order.row_N, order.place_TK)


def _gather_add(place_TK: Tensor, rows_ND: Tensor, weight_TK: Tensor | None = None) -> Tensor:
    # An embedding bag is the one torch op that gathers, weighs and adds in a single pass.
    return F.embedding_bag(place_TK, rows_ND, mode="sum", per_sample_weights=weight_TK)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, token_N: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, token_N)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (place_TK,) = ctx.saved_tensors
        return _gather_add(place_TK, grad_ND.contiguous()), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y_ND: Tensor,
        weight_TK: Tensor,
        token_N: Tensor,
        row_N: Tensor,
        place_TK: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(y_ND, weight_TK, token_N, row_N, place_TK)
        return _gather_add(place_TK, y_ND, weight_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        y_ND, weight_TK, token_N, row_N, place_TK = ctx.saved_tensors
        grad_ND = grad_TD.index_select(0, token_N)
        grad_weight_N = torch.linalg.vecdot(y_ND, grad_ND)
        grad_weight_TK = grad_weight_N[place_TK]
        grad_y_ND = grad_ND.mul_(weight_TK.view(-1)[row_N, None])
        return grad_y_ND, grad_weight_TK, None, None, None
