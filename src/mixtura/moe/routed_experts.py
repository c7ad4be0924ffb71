"""Routed experts: from tokens and their routing to each token's weighted sum of expert outputs.

T tokens, D width, N routed rows, M rows sorted by expert, with padding, E experts.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mixtura.kernels import permute
from mixtura.kernels.permute import Padding
from mixtura.moe.routing import Routing


class RoutedExperts(Protocol):
    """The experts of one layer, on any device.

    `Experts` computes on one device, and `PackedExperts` from packed weights. Expert parallelism
    would have an all-to-all inside.
    """

    def __call__(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """out_TD: the weighted sum of each token's experts; 0 for a token without a computed row.

        `routing.expert_N` is the expert that computes a row, and `routing.weight_N` its weight.
        """
        ...


def routed_by_segments(
    x_TD: Tensor,
    routing: Routing,
    padding: Padding,
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """out_TD by an FFN over rows sorted by expert.

    `compute(x_MD, segment_E)` returns y_MD; `segment_E` are the rows of each expert in turn, with
    `padding`, and rows after them give 0. Under a capacity rule with waves it is called once a
    wave, so that no call has more rows of an expert than its capacity; the number of waves is read
    from the device, once.
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
