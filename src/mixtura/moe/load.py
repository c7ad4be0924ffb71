"""Load statistics, as plain functions of Routing and of its load.

E experts, L layers, N routed rows, T tokens. All read `chosen_N`, the experts before capacity, and
skip padding, except `dropped_share` and `computed_load`, which read `expert_N`.
"""

import torch
from torch import Tensor

from mixtura.moe.routing import Routing

# Optimizer steps that alarms cover.
WINDOW = 100
STARVING_SHARE = 0.1
COLLAPSED_SHARE = 0.9


def load(routing: Routing) -> Tensor:
    """load_E: rows that chose each expert, before capacity; int64."""
    return _count(routing.chosen_N, routing.valid_N, routing.num_experts)


def computed_load(routing: Routing) -> Tensor:
    """load_E: rows that each expert computes, after capacity; int64."""
    return _count(routing.expert_N, None, routing.num_experts)


def _count(expert_N: Tensor, valid_N: Tensor | None, num_experts: int) -> Tensor:
    one_N = torch.ones_like(expert_N) if valid_N is None else valid_N.to(expert_N.dtype)
    # Rows without an expert, dropped or unused, have expert num_experts: the extra bin.
    return expert_N.new_zeros(num_experts + 1).scatter_add_(0, expert_N, one_N)[:-1]


def importance(routing: Routing) -> Tensor:
    """importance_E: the combine weights summed over tokens, differentiable.

    Importance(X) of Shazeer 2017 (arXiv 1701.06538, eq. 6), over the chosen experts with their
    weights before capacity; padding is not counted.
    """
    gate_N = routing.terms.get("gate_N", routing.weight_N)
    if routing.valid_N is not None:
        gate_N = gate_N * routing.valid_N
    sum_E = gate_N.new_zeros(routing.num_experts + 1).index_add(0, routing.chosen_N, gate_N)
    return sum_E[:-1]


def max_over_mean(load_E: Tensor) -> Tensor:
    """The largest load over the mean load, along the last dim; 1 is even, E is one busy expert.

    A load without rows is even, here and below, and not 0/0: thresholds may refuse all tokens.
    """
    load_E = load_E.double()
    return torch.where(load_E.any(-1), load_E.amax(-1) / _mean(load_E), 1.0)


def coefficient_of_variation(load_E: Tensor) -> Tensor:
    """Standard deviation of load over its mean, along the last dim; 0 is even."""
    load_E = load_E if load_E.is_floating_point() else load_E.double()
    return load_E.std(-1, correction=0) / _mean(load_E)


def _mean(load_E: Tensor) -> Tensor:
    return load_E.mean(-1).clamp(min=torch.finfo(load_E.dtype).tiny)


def entropy(load_E: Tensor) -> Tensor:
    """Entropy of the load's shares over log E, along the last dim: 1 is even, 0 is one expert."""
    share_E = load_E.double() / load_E.sum(-1, keepdim=True).clamp(min=1)
    num_experts = load_E.shape[-1]
    if num_experts == 1:
        return torch.ones_like(share_E[..., 0])
    of_even = torch.special.entr(share_E).sum(-1) / torch.tensor(float(num_experts)).log()
    return torch.where(load_E.any(-1), of_even, 1.0)


def dropped_share(routing: Routing) -> Tensor:
    """Share of rows with a chosen expert that no expert computed, in 0..1; 0 without such rows."""
    return routing.dropped_N.sum() / routing.has_choice_N.sum().clamp(min=1)


def starving(load_E: Tensor) -> Tensor:
    """True for an expert under a tenth of its even share; `load_E` is that of 100 steps.

    True for all experts where no token chose any.
    """
    under_E = load_E < STARVING_SHARE * load_E.double().mean(-1, keepdim=True)
    return under_E | (load_E == 0)


def collapsed(load_E: Tensor, top_k: int) -> Tensor:
    """True for a layer whose busiest `top_k` experts were chosen by over 90% of its rows.

    A layer with at most `top_k` / 0.9 experts never counts as collapsed, since it has no choice.
    """
    num_experts = load_E.shape[-1]
    busiest = load_E.topk(min(top_k, num_experts)).values.sum(-1)
    share = busiest.double() / load_E.sum(-1)
    has_choice = top_k < COLLAPSED_SHARE * num_experts
    return (share > COLLAPSED_SHARE) & has_choice
