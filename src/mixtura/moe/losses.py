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
from mixtura.moe.routers.router import CountedChoices, LossName
from mixtura.moe.routing import Routing, first_choices
from mixtura.moe.shares import LossScope, shares_of
from mixtura.moe.tokens import mean_over_tokens

Need = Literal["scope", "step_load_E", "choices", "reward_T"]


def balance_loss(
    routing: Routing,
    scope: LossScope = "sequence",
    step_load_E: Tensor | None = None,
    choices: CountedChoices = "all",
) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv 2101.03961, eq. 4); 1 at even load for every E and k.

    f: share of the rows that chose e, before capacity; P: mean router probability; padding is not
    counted. `sequence` averages over sequences, of which one of padding alone counts as even, so
    the loss is the same on any number of ranks. `micro_batch` depends on the number of ranks by
    definition. `global_batch` takes f from `step_load_E`, the load of the optimizer step so far,
    summed over ranks.

    A hierarchical router has such a loss for each level, and their mean is its loss: one over
    groups, and one in each group over its experts, weighted by the group's rows. A level whose
    gates have one choice does not count.

    `choices` "first" counts only each token's first choice, as GShard does.
    """
    counted = first_choices(routing) if choices == "first" else routing
    levels = shares_of(counted, scope, step_load_E)
    losses = [shares.loss() for shares in levels if shares.size > 1]
    return sum(losses[1:], losses[0]) / len(losses) if losses else levels[0].loss()


def z_loss(routing: Routing) -> Tensor:
    """mean_t logsumexp(logits_t)^2 (ST-MoE, arXiv 2202.08906, eq. 5); padding is not counted."""
    assert routing.logits_TE is not None, "this router gives no logits"
    return mean_over_tokens(routing.logits_TE.logsumexp(-1).square(), routing.valid_T)


def importance_loss(routing: Routing) -> Tensor:
    """CV(Importance(X))^2 (Shazeer 2017, arXiv 1701.06538, eq. 7); 0 at even importance."""
    return _squared_variation(importance(routing))


def load_loss(routing: Routing) -> Tensor:
    """CV(Load(X))^2 of the smooth load (Shazeer 2017, arXiv 1701.06538, eq. 11); 0 when even."""
    return _squared_variation(routing.terms["load_E"])


def _squared_variation(of_E: Tensor) -> Tensor:
    """CV^2, the variance over the squared mean; 0, not 0/0, without tokens."""
    return of_E.var(correction=0) / of_E.mean().square().clamp(min=torch.finfo(of_E.dtype).tiny)


def entropy_loss(routing: Routing) -> Tensor:
    """mean_t of the entropy of token t's probabilities, in nats; padding is not counted.

    The dynamic loss of "Harder Tasks Need More Experts" (arXiv 2403.07652): without it a top-p
    router learns even probabilities, and chooses all experts. It is 0 for a probability of 1, and
    ln E at even probabilities.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE = routing.probs_TE
    # p ln p has no slope at p = 0, which a small probability may become in fp32.
    log_TE = probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()
    return mean_over_tokens(-(probs_TE * log_TE).sum(-1), routing.valid_T)


def threshold_loss(routing: Routing) -> Tensor:
    """sum_i (M_threshold - M_batchwise)(X_ji - T_i), mean over tokens j, padding not counted.

    L_batchwise of Shazeer 2017 (arXiv 1701.06538, appendix F), where it is a sum over j. It trains
    only the thresholds T: X, the gate's probabilities, is a constant here.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE, threshold_E = routing.probs_TE.detach(), routing.terms["threshold_E"]
    over_TE = (probs_TE > threshold_E).to(probs_TE.dtype) - routing.terms["kept_TE"].to(probs_TE)
    return mean_over_tokens((over_TE * (probs_TE - threshold_E)).sum(-1), routing.valid_T)


@dataclass(frozen=True, slots=True)
class Loss:
    """A row of `LOSSES`."""

    name: LossName
    """in logs, and in a router's `losses`"""
    function: Callable[..., Tensor]
    """called with a Routing and the values of `needs`"""
    needs: tuple[Need, ...] = ()
    key: str = ""
    """the weight's key in `BalanceConfig`, where it is not the name"""

    @property
    def weight_key(self) -> str:
        return self.key or self.name

    @property
    def is_late(self) -> bool:
        """Whether it needs the model's output; see `late_losses`."""
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
