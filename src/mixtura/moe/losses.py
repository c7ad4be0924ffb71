"""The balancing losses of one layer as functions of `Routing`, and the table of these losses.

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
    """E * sum_e f_e * P_e (Switch, arXiv 2101.03961, eq. 4); 1 at even load for every E and top_k.

    f_e is the share of the rows that chose expert e, before capacity. P_e is the mean of the
    router's probabilities for expert e. Padding is not counted.

    Scope `sequence` averages the losses of all sequences. A sequence in which all tokens are
    padding has the loss 1, so that the mean over all ranks does not depend on which rank reads that
    sequence. Scope `micro_batch` computes one loss over the tokens of this rank's forward pass, so
    its result depends on the number of ranks. Scope `global_batch` takes f from `step_load_E`, the
    load of the optimizer step so far, summed over ranks.

    A hierarchical router has one loss for each level, and the result is the mean of these losses.
    The outermost level's loss is over groups of experts. An inner level's loss is the mean of the
    losses of its gates, weighted by the rows of each gate. Levels whose gates have only one choice
    are left out.

    `choices="first"` counts only each token's first choice, as GShard does.
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
    """CV(Importance(X))^2 (Shazeer 2017, arXiv 1701.06538, eq. 7); 0 at even importance.

    CV is the coefficient of variation over experts.
    """
    return _squared_variation(importance(routing))


def load_loss(routing: Routing) -> Tensor:
    """CV(Load(X))^2 of the smooth load (Shazeer 2017, arXiv 1701.06538, eq. 11); 0 at even load.

    CV is the coefficient of variation over experts.
    """
    return _squared_variation(routing.terms["load_E"])


def _squared_variation(of_E: Tensor) -> Tensor:
    """CV^2, the variance divided by the squared mean; without tokens it is 0 and not 0/0."""
    return of_E.var(correction=0) / of_E.mean().square().clamp(min=torch.finfo(of_E.dtype).tiny)


def entropy_loss(routing: Routing) -> Tensor:
    """The entropy of a token's probabilities in nats, averaged over tokens; padding is not counted.

    This is the dynamic loss of "Harder Tasks Need More Experts" (arXiv 2403.07652). Without it a
    top-p router learns even probabilities, and then chooses as many experts as it may. The entropy
    of a token is 0 if one expert has the probability 1, and ln E if all experts have the same
    probability.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE = routing.probs_TE
    # In fp32 a small probability may become 0, where p ln p has no finite gradient.
    log_TE = probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()
    return mean_over_tokens(-(probs_TE * log_TE).sum(-1), routing.valid_T)


def threshold_loss(routing: Routing) -> Tensor:
    """The mean over tokens j of sum_i (M_threshold - M_batchwise)_ji (X_ji - T_i), without padding.

    X_ji is the gate's probability of expert i, and T_i the expert's threshold. M_threshold is 1
    where X_ji > T_i, else 0. M_batchwise is 1 where expert i took token j in this batch, else 0.
    This is L_batchwise of Shazeer 2017 (arXiv 1701.06538, appendix F), except that the paper takes
    the sum over j and this function the mean. The loss trains only the thresholds T; X is treated
    as a constant.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE, threshold_E = routing.probs_TE.detach(), routing.terms["threshold_E"]
    over_TE = (probs_TE > threshold_E).to(probs_TE.dtype) - routing.terms["kept_TE"].to(probs_TE)
    return mean_over_tokens((over_TE * (probs_TE - threshold_E)).sum(-1), routing.valid_T)


@dataclass(frozen=True, slots=True)
class Loss:
    """One entry of the table `LOSSES`."""

    name: LossName
    """the loss's name in logs and in a router's `losses`"""
    function: Callable[..., Tensor]
    """computes the loss; its arguments are a Routing and the values that `needs` names"""
    needs: tuple[Need, ...] = ()
    key: str = ""
    """the key of the loss's weight in `BalanceConfig`; empty if the key is `name`"""

    @property
    def weight_key(self) -> str:
        return self.key or self.name

    @property
    def is_late(self) -> bool:
        """Whether the loss needs the model's output; see `late_losses`."""
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
