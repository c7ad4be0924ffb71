"""Bring each expert its rows and each token its answer, on one device.

T tokens, D width, N routed rows, M rows sorted by expert, those that pad included, E experts.
"""

from typing import Protocol

import torch
from torch import Tensor

from mixtura.kernels import permute
from mixtura.kernels.permute import Padding
from mixtura.moe.routing import Routing


class ExpertRows(Protocol):
    """Experts, to a dispatcher: rows in, rows out."""

    def padding_for(self, x_TD: Tensor) -> Padding:
        """How segments are padded before `__call__` sees them."""
        ...

    def __call__(self, x_MD: Tensor, segment_E: Tensor) -> Tensor:
        """y_MD for rows sorted by expert, `segment_E` of each; rows past their sum give 0."""
        ...


class Dispatcher(Protocol):
    """Where expert parallelism enters: the same call, with an all-to-all inside."""

    def __call__(self, x_TD: Tensor, routing: Routing, experts: ExpertRows) -> Tensor: ...


def dispatch_local(x_TD: Tensor, routing: Routing, experts: ExpertRows) -> Tensor:
    """out_TD: the weighted sum of each token's experts; 0 for a token that no expert computed."""
    if routing.wave_N is not None:
        return _in_waves(x_TD, routing, routing.wave_N, experts)
    order = permute.order_by_expert(
        routing.expert_N,
        routing.token_N,
        routing.num_experts,
        routing.top_k,
        experts.padding_for(x_TD),
        x_TD.shape[0],
    )
    y_MD = experts(permute.permute(x_TD, order), order.segment_E)
    return permute.combine(y_MD, routing.weight_N, order, routing.product_dtype)


def _in_waves(x_TD: Tensor, routing: Routing, wave_N: Tensor, experts: ExpertRows) -> Tensor:
    """Pass after pass over the rows of one wave, so that none holds more than its capacity.

    How many passes there are is read from the device, once.
    """
    out_TD = torch.zeros_like(x_TD)
    waves = int(wave_N.max()) + 1 if wave_N.numel() else 0
    for wave in range(waves):
        row_N = (wave_N == wave).nonzero().squeeze(1)
        order = permute.order_by_expert(
            routing.expert_N[row_N],
            routing.token_N[row_N],
            routing.num_experts,
            None,
            experts.padding_for(x_TD),
            x_TD.shape[0],
        )
        y_MD = experts(permute.permute(x_TD, order), order.segment_E)
        out_TD = out_TD + permute.combine(y_MD, routing.weight_N[row_N], order)
    return out_TD
