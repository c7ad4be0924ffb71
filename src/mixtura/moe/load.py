"""Statistics of the load, as functions of a `Routing` or of the load itself.

`computed_load` and `dropped_share` read `expert_N`, the experts that compute rows. `load` and
`importance` read `chosen_N`, the experts that the router chose before capacity, and leave out
padding. All other functions take a load. E experts, N routed rows.
"""

import torch
from torch import Tensor

from mixtura.moe.routing import Routing

# Alarms are computed from the load of this number of optimizer steps.
WINDOW = 100
STARVING_SHARE = 0.1
COLLAPSED_SHARE = 0.9


def load(routing: Routing) -> Tensor:
    """load_E: the number of rows that chose each expert, before capacity; int64."""
    return _count(routing.chosen_N, routing.valid_N, routing.num_experts)


def computed_load(routing: Routing) -> Tensor:
    """load_E: the number of rows that each expert computes, after capacity; int64."""
    return _count(routing.expert_N, None, routing.num_experts)


def _count(expert_N: Tensor, valid_N: Tensor | None, num_experts: int) -> Tensor:
    one_N = torch.ones_like(expert_N) if valid_N is None else valid_N.to(expert_N.dtype)
    # Dropped and unused rows have the expert number num_experts; the last bin counts them and is
    # removed.
    return expert_N.new_zeros(num_experts + 1).scatter_add_(0, expert_N, one_N)[:-1]


def importance(routing: Routing) -> Tensor:
    """importance_E: the sum of the combine weights of each expert's rows, differentiable.

    This is Importance(X) of Shazeer 2017 (arXiv 1701.06538, eq. 6). It uses each row's chosen
    expert and the weights before capacity; padding is not counted.
    """
    gate_N = routing.terms.get("gate_N", routing.weight_N)
    if routing.valid_N is not None:
        gate_N = gate_N * routing.valid_N
    sum_E = gate_N.new_zeros(routing.num_experts + 1).index_add(0, routing.chosen_N, gate_N)
    return sum_E[:-1]


def max_over_mean(load_E: Tensor) -> Tensor:
    """The largest load divided by the mean load, along the last dim.

    It is 1 at even load, and E if one expert has all rows. Without rows, which can occur in a
    router with thresholds, it is 1 and not 0/0.
    """
    load_E = load_E.double()
    return torch.where(load_E.any(-1), load_E.amax(-1) / _mean(load_E), 1.0)


def coefficient_of_variation(load_E: Tensor) -> Tensor:
    """The load's standard deviation divided by its mean, along the last dim.

    It is 0 at even load and without rows.
    """
    load_E = load_E if load_E.is_floating_point() else load_E.double()
    return load_E.std(-1, correction=0) / _mean(load_E)


def _mean(load_E: Tensor) -> Tensor:
    return load_E.mean(-1).clamp(min=torch.finfo(load_E.dtype).tiny)


def entropy(load_E: Tensor) -> Tensor:
    """The entropy of the experts' shares of the load, divided by log E; along the last dim.

    It is 1 at even load and without rows, and 0 if one of several experts has all rows.
    """
    share_E = load_E.double() / load_E.sum(-1, keepdim=True).clamp(min=1)
    num_experts = load_E.shape[-1]
    if num_experts == 1:
        return torch.ones_like(share_E[..., 0])
    of_even = torch.special.entr(share_E).sum(-1) / torch.tensor(float(num_experts)).log()
    return torch.where(load_E.any(-1), of_even, 1.0)


def dropped_share(routing: Routing) -> Tensor:
    """The share of dropped rows among all rows with a chosen expert, in 0..1.

    It is 0 if no row has a chosen expert.
    """
    return routing.dropped_N.sum() / routing.has_choice_N.sum().clamp(min=1)


def starving(load_E: Tensor) -> Tensor:
    """True for an expert whose load is 0 or below a tenth of the mean load.

    `load_E` must be the load of `WINDOW` steps. Without rows the result is True for all experts.
    """
    under_E = load_E < STARVING_SHARE * load_E.double().mean(-1, keepdim=True)
    return under_E | (load_E == 0)


def collapsed(load_E: Tensor, top_k: int) -> Tensor:
    """True for a layer whose busiest `top_k` experts were chosen by more than 90% of its rows.

    A layer with at most top_k / 0.9 experts never counts as collapsed: its busiest `top_k` experts
    have at least 90% of the rows even at even load.
    """
    num_experts = load_E.shape[-1]
    busiest = load_E.topk(min(top_k, num_experts)).values.sum(-1)
    share = busiest.double() / load_E.sum(-1)
    has_choice = top_k < COLLAPSED_SHARE * num_experts
    return (share > COLLAPSED_SHARE) & has_choice
