"""Dispatch and combine: sort rows by expert, and sum the expert outputs of each token.

A routed row is one token sent to one expert. A segment is the sorted rows of one expert. T tokens,
D width, E experts, K rows per token, N routed rows (T*K if all tokens have K rows), M sorted rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True, slots=True)
class Padding:
    """The rule for the number of padding rows in each segment. Padding does not affect results.

    Padded segments have few different lengths. This helps libraries that build a kernel for each
    new number of rows, as oneDNN does for bf16 products. Segments of equal length can also be
    multiplied as one batch.
    """

    multiple: int = 1
    """the length of each segment is rounded up to a multiple of this number"""
    even_within: float = 0.0
    """all segments get the longest segment's length if that multiplies the number of rows by at
    most this factor"""

    def segments(self, count_E: Tensor) -> Tensor:
        """The length of each segment, from each expert's number of routed rows; both on the CPU."""
        segment_E = (count_E + self.multiple - 1) // self.multiple * self.multiple
        longest = segment_E.max()
        if len(segment_E) * longest <= self.even_within * count_E.sum():
            return longest.expand_as(segment_E).contiguous()
        return segment_E


COMPACT = Padding()


@dataclass(frozen=True, slots=True)
class Order:
    """The order of rows after a stable sort by expert. Rows without an expert (number E) come last.

    The M sorted rows are the N routed rows and the padding rows of segments. A padding row is a
    copy of token 0 with weight 0. If token 0 is finite, padding adds nothing to results and
    gradients. NaN or inf in token 0 reaches the weight gradients of every expert that has padding
    rows.
    """

    token_M: Tensor
    """the token of each sorted row; 0 for a padding row"""
    row_M: Tensor
    """the routed row of each sorted row; N for a padding row"""
    place_TK: Tensor | None
    """the sorted row of each token's k-th routed row; None unless every token has K consecutive
    routed rows"""
    segment_E: Tensor
    """the length of each expert's segment, int64"""
    bags: "Bags | None" = None
    """each token's rows if `place_TK` is None, else None"""


@dataclass(frozen=True, slots=True)
class Bags:
    """Routed rows sorted by token, for tokens with different numbers of rows."""

    row_N: Tensor
    """the routed row at each place of this order"""
    place_N: Tensor
    """the sorted row, in `Order`, at each place of this order"""
    offset_T: Tensor
    """the place of each token's first row in this order"""


def order_by_expert(
    expert_N: Tensor,
    token_N: Tensor,
    num_experts: int,
    top_k: int | None,
    padding: Padding = COMPACT,
    num_tokens: int | None = None,
) -> Order:
    """The order of rows sorted by expert.

    With `top_k`, row n must be of token n // top_k. Without `top_k`, rows may be in any order, and
    `num_tokens` is needed. Padding reads the number of rows of each expert, which would wait for a
    GPU; leave `padding` out on a GPU.
    """
    sorted_N, row_N = expert_N.sort(stable=True)
    # Rows without an expert are counted in an additional last bin.
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
    """Lengthen the segments of an unpadded order to `segment_E`; `expert_N` must be sorted."""
    # A row moves by the number of padding rows in the segments before its own. A row without an
    # expert moves by the number of all padding rows.
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
    """x_MD: the tokens' rows in sorted order; the naive twin of `permute`."""
    return x_TD[order.token_M]


def combine_naive(y_MD: Tensor, weight_N: Tensor, order: Order, num_tokens: int) -> Tensor:
    """out_TD: the sum of weight * y over each token's rows; the naive twin of `combine`.

    `y_MD` is in sorted order, and `weight_N` in the order of routed rows. For a row without an
    expert y must be finite and the weight 0.
    """
    weighted_MD = y_MD * _with_zero(weight_N)[order.row_M, None].to(y_MD.dtype)
    return y_MD.new_zeros(num_tokens, y_MD.shape[1]).index_add(0, order.token_M, weighted_MD)


def _with_zero(weight_N: Tensor) -> Tensor:
    """The weights, followed by a 0 that is the weight of padding rows."""
    return torch.cat([weight_N, weight_N.new_zeros(1)])


def permute(x_TD: Tensor, order: Order) -> Tensor:
    """x_MD: the tokens' rows in sorted order.

    The backward pass gathers rows and adds them, so it is deterministic and parallel.
    """
    if order.bags is not None:
        return _Permute.apply(x_TD, order.token_M, order.bags.place_N, order.bags.offset_T)
    return _Permute.apply(x_TD, order.token_M, order.place_TK, None)


def combine(
    y_MD: Tensor, weight_N: Tensor, order: Order, product_dtype: torch.dtype | None = None
) -> Tensor:
    """out_TD: the result of `combine_naive`, in one pass over the rows and without a copy of them.

    With a `product_dtype`, and in an order with `place_TK`, each weighted row is rounded to this
    dtype before the sum, as in transformers. This takes three passes and a copy of the rows.
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
    """out_TD: the weighted sum of each token's rows.

    `place` and `weight` are (T, K), or (N,) with the start of each token's rows in `offset_T`.
    """
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
        # Padding rows are not in `place`, so their weight stays 0.
        weight_M = weight.new_zeros(len(y_MD)).scatter_(0, place.view(-1), weight.reshape(-1))
        return grad_MD.mul_(weight_M[:, None]), grad_weight, None, None, None
