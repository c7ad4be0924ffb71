"""Losses of one layer, each a plain function of Routing, and the table of them.

T tokens, E experts, N routed rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixtura.moe.device_losses import communication_loss, device_balance_loss
from mixtura.moe.load import importance
from mixtura.moe.routers.reinforce import reinforce_loss
from mixtura.moe.routers.router import Choices, LossName
from mixtura.moe.routing import Routing, first_choices
from mixtura.moe.shares import Scope, shares_of
from mixtura.moe.tokens import mean_over_tokens

Need = Literal["scope", "step_load_E", "choices", "reward_T"]


def balance_loss(
    routing: Routing,
    scope: Scope = "sequence",
    step_load_E: Tensor | None = None,
    choices: Choices = "all",
) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv 2101.03961, eq. 4); 1 at even load for every E and k.

    f: share of the rows that chose e, before capacity; P: mean router probability; padding left
    out. `sequence` averages over sequences, each by itself, and one of padding alone counts as
    even: the same number on any number of ranks. `micro_batch` is not, by definition.
    `global_batch` takes f from `step_load_E`, the load of the optimizer step so far, summed over
    ranks.

    A hierarchical router has such a loss for each level, and their mean is its loss: over groups;
    and in each group over its experts, groups weighted by the rows that asked their gates. A level
    whose gates have one choice has nothing to balance and does not count.

    `choices` "first" counts each token's first choice alone, as GShard does.
    """
    counted = first_choices(routing) if choices == "first" else routing
    levels = shares_of(counted, scope, step_load_E)
    losses = [shares.loss() for shares in levels if shares.size > 1]
    return sum(losses[1:], losses[0]) / len(losses) if losses else levels[0].loss()


def z_loss(routing: Routing) -> Tensor:
    """mean_t logsumexp(logits_t)^2 (ST-MoE, arXiv 2202.08906, eq. 5); padding left out."""
    assert routing.logits_TE is not None, "this router gives no logits"
    return mean_over_tokens(routing.logits_TE.logsumexp(-1).square(), routing.valid_T)


def importance_loss(routing: Routing) -> Tensor:
    """CV(Importance(X))^2 (Shazeer 2017, arXiv 1701.06538, eq. 7); 0 at even importance."""
    return _squared_variation(importance(routing))


def load_loss(routing: Routing) -> Tensor:
    """CV(Load(X))^2 of the smooth load (Shazeer 2017, arXiv 1701.06538, eq. 11); 0 when even."""
    return _squared_variation(routing.terms["load_E"])


def _squared_variation(of_E: Tensor) -> Tensor:
    """CV^2, the variance over the squared mean; 0, not 0/0, where there are no tokens."""
    return of_E.var(correction=0) / of_E.mean().square().clamp(min=torch.finfo(of_E.dtype).tiny)


def entropy_loss(routing: Routing) -> Tensor:
    """mean_t of the entropy of token t's probabilities, in nats; padding left out.

    The dynamic loss of "Harder Tasks Need More Experts" (arXiv 2403.07652): without it a top-p
    router learns to be unsure, and takes all experts. 0 for a router that is sure, ln E at most.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE = routing.probs_TE
    # p ln p has no slope at 0, where a far-off expert's probability ends in fp32.
    log_TE = probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()
    return mean_over_tokens(-(probs_TE * log_TE).sum(-1), routing.valid_T)


def threshold_loss(routing: Routing) -> Tensor:
    """sum_i (M_threshold - M_batchwise)(X_ji - T_i), mean over tokens j, padding left out.

    L_batchwise of Shazeer 2017 (arXiv 1701.06538, appendix F), there a sum over j. It teaches the
    thresholds T alone: X, the gate's probabilities, is a constant here.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE, threshold_E = routing.probs_TE.detach(), routing.terms["threshold_E"]
    over_TE = (probs_TE > threshold_E).to(probs_TE.dtype) - routing.terms["kept_TE"].to(probs_TE)
    return mean_over_tokens((over_TE * (probs_TE - threshold_E)).sum(-1), routing.valid_T)


@dataclass(frozen=True, slots=True)
class Loss:
    """One line of the table."""

    name: LossName
    """in logs, and in a router's `losses`"""
    function: Callable[..., Tensor]
    """takes a Routing, then what `needs` names"""
    needs: tuple[Need, ...] = ()
    key: str = ""
    """what `BalanceConfig` calls its weight, where that is not the name"""

    @property
    def weight_key(self) -> str:
        return self.key or self.name

    @property
    def is_late(self) -> bool:
        """Whether it needs what the model's end alone makes known; see `late_losses`."""
        return "reward_T" in self.needs

    def of(self, routing: Routing, given: Mapping[Need, object]) -> Tensor:
        return self.function(routing, *(given[need] for need in self.needs))


LOSSES: Mapping[LossName, Loss] = {
    loss.name: loss
    for loss in (
        Loss("balance", balance_loss, ("scope", "step_load_E", "choices"), key="loss"),
        Loss("z", z_loss, key="z_loss"),
        Loss("importance", importance_loss),
        Loss("load", load_loss),
        Loss("device", device_balance_loss, ("scope", "step_load_E")),
        Loss("communication", communication_loss, ("scope",)),
        Loss("threshold", threshold_loss),
        Loss("entropy", entropy_loss),
        Loss("policy", reinforce_loss, ("reward_T",)),
    )
}
