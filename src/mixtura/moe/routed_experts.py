"""Routed experts: dispatch tokens to experts, compute the experts, and combine their outputs.

T tokens, D width, E experts, N routed rows, M rows sorted by expert, padding rows included.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mixtura.kernels import permute
from mixtura.kernels.permute import Padding
from mixtura.moe.routing import Routing


class RoutedExperts(Protocol):
    """The interface of one layer's experts.

    `Experts` computes them from plain weights on one device, and `PackedExperts` from packed
    weights. An implementation for expert parallelism would contain an all-to-all.
    """

    def __call__(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """out_TD: each token's weighted sum of expert outputs; 0 if no expert computes the token.

        Expert `routing.expert_N[n]` computes row n, and `routing.weight_N[n]` is the row's weight
        in the sum.
        """
        ...


def routed_by_segments(
    x_TD: Tensor,
    routing: Routing,
    padding: Padding,
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """out_TD: sort rows by expert, call `compute` on the sorted rows, and combine the results.

    `compute(x_MD, segment_E)` must return y_MD. The first segment_E[0] rows of x_MD belong to
    expert 0, the next segment_E[1] rows to expert 1, and so on; segments include their padding
    rows. Rows after the last segment must give 0. Under the capacity policy `wave`, `compute` is
    called once for each wave, so that no call has more rows of an expert than the expert's
    capacity. The number of waves is then read from the device, and this read waits for the device
    once.
    """
    num_tokens = x_TD.shape[0]
    if routing.wave_N is None:
        order = permute.order_by_expert(
            routing.expert_N,
            routing.token_N,
            routing.num_experts,
            routing.top_k,
            padding,
            num_tokens,
        )
        y_MD = compute(permute.permute(x_TD, order), order.segment_E)
        return permute.combine(y_MD, routing.weight_N, order, routing.product_dtype)
    out_TD = torch.zeros_like(x_TD)
    waves = int(routing.wave_N.max()) + 1 if routing.wave_N.numel() else 0
    for wave in range(waves):
        row_N = (routing.wave_N == wave).nonzero().squeeze(1)
        order = permute.order_by_expert(
            routing.expert_N[row_N],
            routing.token_N[row_N],
            routing.num_experts,
            None,
            padding,
            num_tokens,
        )
        y_MD = compute(permute.permute(x_TD, order), order.segment_E)
        out_TD = out_TD + permute.combine(y_MD, routing.weight_N[row_N], order)
    return out_TD
