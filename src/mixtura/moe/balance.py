"""Balancing: each loss is a plain function of Routing, for one layer, never pooled over layers.

T tokens, E experts, N routed rows, B sequences of S tokens.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.config import Config
from mixtura.moe.load import load
from mixtura.moe.routing import Routing

Scope = Literal["sequence", "micro_batch", "global_batch"]


class BalanceConfig(Config):
    """Weights of the balancing losses, and the rate of bias balancing; all on by default.

    Defaults: Switch's alpha (arXiv 2101.03961), ST-MoE's c_z (2202.08906), DeepSeek-V3's gamma
    (2412.19437). `bias_rate` acts where the router has a choosing bias.
    """

    loss: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    scope: Scope = "sequence"
    z_loss: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    bias_rate: float = Field(default=0.001, ge=0, allow_inf_nan=False)


def balance_loss(
    routing: Routing, scope: Scope = "sequence", step_load_E: Tensor | None = None
) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv 2101.03961, eq. 4); 1 at even load for every E and k.

    f: share of the rows that chose e, before capacity; P: mean router probability; padding left
    out. `sequence` averages over sequences, each by itself: the same number on any number of
    ranks. `micro_batch` is not, by definition. `global_batch` takes f from `step_load_E`, the load
    of the optimizer step so far, summed over ranks.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    groups = routing.num_sequences if scope == "sequence" else 1
    mean_prob_BE, valid_B = _mean_probability(routing, groups)
    if scope == "global_batch" and step_load_E is not None:
        load_BE = step_load_E[None]
    else:
        load_BE = _load_by_group(routing, groups)
    load_BE = load_BE.to(mean_prob_BE.dtype)
    share_BE = load_BE / load_BE.sum(-1, keepdim=True).clamp(min=1)
    loss_B = routing.num_experts * (share_BE * mean_prob_BE).sum(-1)
    if valid_B is None:
        return loss_B.mean()
    return (loss_B * valid_B).sum() / valid_B.sum().clamp(min=1)


def _mean_probability(routing: Routing, groups: int) -> tuple[Tensor, Tensor | None]:
    """P of each group of tokens, and which groups hold a token at all (None: every one)."""
    assert routing.probs_TE is not None
    probs_BSE = routing.probs_TE.view(groups, -1, routing.num_experts)
    if routing.valid_T is None:
        # A group without tokens, as on an idle rank, has P = 0, not 0/0.
        return probs_BSE.sum(1) / max(probs_BSE.shape[1], 1), None
    valid_BS = routing.valid_T.view(groups, -1)
    count_B = valid_BS.sum(1)
    total_BE = (probs_BSE * valid_BS[..., None]).sum(1)
    return total_BE / count_B.clamp(min=1)[:, None], count_B > 0


def _load_by_group(routing: Routing, groups: int) -> Tensor:
    if groups == 1:
        return load(routing)[None]
    key_N = routing.sequence_N * routing.num_experts + routing.chosen_N
    valid_N = routing.valid_N
    one_N = torch.ones_like(key_N) if valid_N is None else valid_N.to(key_N.dtype)
    flat = key_N.new_zeros(groups * routing.num_experts).scatter_add_(0, key_N, one_N)
    return flat.view(groups, routing.num_experts)


def z_loss(routing: Routing) -> Tensor:
    """mean_t logsumexp(logits_t)^2 (ST-MoE, arXiv 2202.08906, eq. 5); padding left out."""
    assert routing.logits_TE is not None, "this router gives no logits"
    square_T = routing.logits_TE.logsumexp(-1).square()
    if routing.valid_T is None:
        return square_T.sum() / max(square_T.shape[0], 1)
    return (square_T * routing.valid_T).sum() / routing.valid_T.sum().clamp(min=1)


def bias_step(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The bias after one optimizer step: b_e + rate * sign(mean load - load_e).

    Bias balancing without a loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2); the bias chooses
    and never weighs.
    """
    load_E = load_E.double()
    return bias_E + rate * (load_E.mean() - load_E).sign().to(bias_E.dtype)


class Balancer:
    """One layer's weighted losses, and its load since the last optimizer step.

    `sum_over_ranks` turns a local load into the global one; one process needs none.
    """

    def __init__(
        self,
        config: BalanceConfig,
        num_experts: int,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.num_experts = num_experts
        self.sum_over_ranks = sum_over_ranks
        self._earlier_E: Tensor | None = None
        self._current_E: Tensor | None = None

    @property
    def step_load_E(self) -> Tensor | None:
        """Local load of the optimizer step so far, int64; None before its first forward pass."""
        if self._earlier_E is None or self._current_E is None:
            return self._current_E if self._earlier_E is None else self._earlier_E
        return self._earlier_E + self._current_E

    def observe(self, routing: Routing) -> None:
        """Note a micro-step's load. Recomputing the same pass (checkpointing) changes nothing."""
        self._current_E = load(routing)

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """The layer's losses by name, each times its weight; `observe` comes before."""
        config = self.config
        losses: dict[str, Tensor] = {}
        if config.loss > 0 and routing.probs_TE is not None:
            step_load_E = None
            if config.scope == "global_batch":
                assert self.step_load_E is not None, "observe the routing first"
                step_load_E = self._over_ranks(self.step_load_E)
            losses["balance"] = config.loss * balance_loss(routing, config.scope, step_load_E)
        if config.z_loss > 0 and routing.logits_TE is not None:
            losses["z"] = config.z_loss * z_loss(routing)
        return losses

    def end_micro_step(self) -> None:
        """Close a micro-step, so that the next forward pass adds to its load."""
        self._earlier_E, self._current_E = self.step_load_E, None

    def end_step(self, device: torch.device) -> Tensor:
        """Close an optimizer step: its load over all ranks, and a fresh count."""
        load_E = self.step_load_E
        if load_E is None:
            # Every rank takes part in the sum, or the others wait for ever.
            load_E = torch.zeros(self.num_experts, dtype=torch.int64, device=device)
        self._earlier_E = self._current_E = None
        return self._over_ranks(load_E)

    def _over_ranks(self, load_E: Tensor) -> Tensor:
        return load_E if self.sum_over_ranks is None else self.sum_over_ranks(load_E)
