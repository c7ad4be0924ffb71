"""Bring each expert its rows and each token its answer, on one device.

T tokens, D width, N routed rows.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from mixtura.kernels import permute
from mixtura.moe.routing import Routing

ExpertRows = Callable[[Tensor, Tensor], Tensor]
"""(x_ND sorted by expert, count_E) -> y_ND"""


class Dispatcher(Protocol):
    """Where expert parallelism enters: the same call, with an all-to-all inside."""

    def __call__(self, x_TD: Tensor, routing: Routing, experts: ExpertRows) -> Tensor: ...


def dispatch_local(x_TD: Tensor, routing: Routing, experts: ExpertRows) -> Tensor:
    """out_TD: the weighted sum of each token's experts; 0 for a token that no expert computed."""
    order = permute.order_by_expert(
        routing.expert_N, routing.token_N, routing.num_experts, routing.top_k
    )
    y_ND = experts(permute.permute(x_TD, order), order.count_E)
    return permute.combine(y_ND, routing.weight_N, order, x_TD.shape[0])
