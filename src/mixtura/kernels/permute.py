"""Sorts rows by expert, and sums each token's results.

T tokens, D width, E experts, K rows per token, N = T*K routed rows, M rows in sorted order.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True, slots=True)
class Padding:
    """How many padding rows an expert's segment has; they do not affect results.

    Kernels that are made for each new number of rows (oneDNN's bf16 products) then meet few
    numbers, and segments of equal length can be multiplied as one batch.
    """

    multiple: int = 1
    """each segment is rounded up to a multiple of this"""
    even_within: float = 0.0
    """all segments get the longest's length if rows grow by at most this factor"""

    def segments(self, count_E: Tensor) -> Tensor:
        """Rows of each expert's segment, from the number of its own rows; CPU tensors."""
        segment_E = (count_E + self.multiple - 1) // self.multiple * self.multiple
        longest = segment_E.max()
        if len(segment_E) * longest <= self.even_within * count_E.sum():
            return longest.expand_as(segment_E).contiguous()
        return segment_E


COMPACT = Padding()


@dataclass(frozen=True, slots=True)
class Order:
    """Rows sorted by expert, stably, in one segment an expert; rows of no expert (E) come last.

    M rows in the sorted order: N, and the padding of segments. A padding row is a copy of token 0
    with weight 0, so it adds nothing to any result or gradient if token 0 is finite; NaN or inf in
    token 0 spreads to the weight gradients of every expert with such a row.
    """

    token_M: Tensor
    """sorted row -> token; 0 for a padding row"""
    row_M: Tensor
    """sorted row -> row as routed; N for a padding row"""
    place_TK: Tensor | None
    """token and choice -> sorted row; None unless rows are K a token, in order"""
    segment_E: Tensor
    """rows of each expert's segment, int64"""
    bags: "Bags | None" = None
    """each token's rows, where `place_TK` is None"""


@dataclass(frozen=True, slots=True)
class Bags:
    """The rows of each token in turn, where tokens have different numbers of rows."""

    row_N: Tensor
    """place in this order -> row as routed"""
    place_N: Tensor
    """place in this order -> sorted row"""
    offset_T: Tensor
    """place of each token's first row in this order"""


def order_by_expert(
    expert_N: Tensor,
    token_N: Tensor,
    num_experts: int,
    top_k: int | None,
    padding: Padding = COMPACT,
    num_tokens: int | None = None,
) -> Order:
    """Sort rows by expert.

    With `top_k`, row n belongs to token n // top_k; else rows come in any order. Without `top_k`,
    `num_tokens` counts the tokens to sum rows into. Padding reads the counts,
    which would synchronise with a GPU: leave it out there.
    """
    sorted_N, row_N = expert_N.sort(stable=True)
    # Rows of no expert fall into the extra bin.
    count_E = expert_N.new_zeros(num_experts + 1)
    count_E = count_E.scatter_add_(0, expert_N, torch.ones_like(expert_N))[:-1]
    place_N = torch.arange(len(row_N), device=row_N.device)
    place_N = torch.empty_like(row_N).scatter_(0, row_N, place_N)
    if top_k is not None:
        order = Order(token_N[row_N], row_N, place_N.view(-1, top_k), count_E)
    else:
        assert num_tokens is not None, "rows in any order need num_tokens"
        bags = _bags(token_N, place_N, num_tokens)
        order = Order(token_N[row_N], row_N, None, count_E, bags)
    return order if padding == COMPACT else _pad(order, sorted_N, padding.segments(count_E))


def _bags(token_N: Tensor, place_N: Tensor, num_tokens: int) -> Bags:
    sorted_N, row_N = token_N.sort(stable=True)
    token_T = torch.arange(num_tokens, device=token_N.device)
    return Bags(row_N, place_N[row_N], torch.searchsorted(sorted_N, token_T))


def _pad(order: Order, expert_N: Tensor, segment_E: Tensor) -> Order:
    """Lengthen the segments of a compact order to `segment_E`; `expert_N` is sorted."""
    # A row moves by the padding of the segments before its own, a row of no expert by all of it.
    moved_E1 = F.pad((segment_E - order.segment_E).cumsum(0), (1, 0))
    rows = len(expert_N)
    padded = rows + int(moved_E1[-1])
    place_N = torch.arange(rows, device=expert_N.device) + moved_E1[expert_N]
    return Order(
        token_M=order.token_M.new_zeros(padded).scatter_(0, place_N, order.token_M),
        row_M=order.row_M.new_full((padded,), rows).scatter_(0, place_N, order.row_M),
        place_TK=None if order.place_TK is None else place_N[order.place_TK],
        segment_E=segment_E,
        bags=None if order.bags is None else _moved(order.bags, place_N),
    )


def _moved(bags: Bags, place_N: Tensor) -> Bags:
    return Bags(bags.row_N, place_N[bags.place_N], bags.offset_T)


def permute_naive(x_TD: Tensor, order: Order) -> Tensor:
    """x_MD in sorted order; the twin of `permute`."""
    return x_TD[order.token_M]


def combine_naive(y_MD: Tensor, weight_N: Tensor, order: Order, num_tokens: int) -> Tensor:
    """out_TD = sum over a token's rows of weight * y; the twin of `combine`.

    `y_MD` is in sorted order, `weight_N` as routed; a row of no expert has a finite y and weight 0.
    """
    weighted_MD = y_MD * _with_zero(weight_N)[order.row_M, None].to(y_MD.dtype)
    return y_MD.new_zeros(num_tokens, y_MD.shape[1]).index_add(0, order.token_M, weighted_MD)


def _with_zero(weight_N: Tensor) -> Tensor:
    """The weights, and a 0 for padding rows."""
    return torch.cat([weight_N, weight_N.new_zeros(1)])


def permute(x_TD: Tensor, order: Order) -> Tensor:
    """x_MD in sorted order. Its backward gathers and adds, so it is deterministic and parallel."""
    if order.bags is not None:
        return _Permute.apply(x_TD, order.token_M, order.bags.place_N, order.bags.offset_T)
    return _Permute.apply(x_TD, order.token_M, order.place_TK, None)


def combine(
    y_MD: Tensor, weight_N: Tensor, order: Order, product_dtype: torch.dtype | None = None
) -> Tensor:
    """As `combine_naive`, in one pass over the rows, without a weighted copy of them.

    With a `product_dtype`, and an order with `top_k`, each weighted row is rounded to it before the
    sum, as transformers does; that takes three passes and a copy.
    """
    if product_dtype is not None and order.place_TK is not None:
        weight_TK = weight_N.view_as(order.place_TK).to(product_dtype)
        return (y_MD[order.place_TK] * weight_TK[..., None]).sum(1).to(y_MD.dtype)
    weight_N = weight_N.to(y_MD.dtype)
    if order.bags is not None:
        bags = order.bags
        weight_N = weight_N.index_select(0, bags.row_N)
        return _Combine.apply(y_MD, weight_N, order.token_M, bags.place_N, bags.offset_T)
    assert order.place_TK is not None
    weight_TK = weight_N.view_as(order.place_TK)
    return _Combine.apply(y_MD, weight_TK, order.token_M, order.place_TK, None)


def _gather_add(
    place: Tensor, rows_MD: Tensor, offset_T: Tensor | None, weight: Tensor | None = None
) -> Tensor:
    """out_TD: the sum of each token's rows; `place` and `weight` are (T, K), or (N,) and ragged."""
    # embedding_bag is the one torch op that gathers, weighs and adds in a single pass.
    return F.embedding_bag(place, rows_MD, offset_T, mode="sum", per_sample_weights=weight)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, token_M: Tensor, place: Tensor, offset_T: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(place, offset_T)  # pyright: ignore[reportArgumentType]
        return x_TD.index_select(0, token_M)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_MD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        place, offset_T = ctx.saved_tensors
        return _gather_add(place, grad_MD.contiguous(), offset_T), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y_MD: Tensor,
        weight: Tensor,
        token_M: Tensor,
        place: Tensor,
        offset_T: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(y_MD, weight, token_M, place)
        return _gather_add(place, y_MD, offset_T, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        y_MD, weight, token_M, place = ctx.saved_tensors
        grad_MD = grad_TD.index_select(0, token_M)
        grad_weight = torch.linalg.vecdot(y_MD, grad_MD)[place]
        # Padding rows keep the weight 0.
        weight_M = weight.new_zeros(len(y_MD)).scatter_(0, place.view(-1), weight.reshape(-1))
        return grad_MD.mul_(weight_M[:, None]), grad_weight, None, None, None
