"""Balancing: each loss is a plain function of Routing, for one layer, never pooled over layers.

T tokens, E experts, N routed rows, B sequences of S tokens.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mixtura.config import Config
from mixtura.moe.device_balance import communication_loss, device_balance_loss
from mixtura.moe.load import importance, load
from mixtura.moe.routers.router import Choices, LossName, RouterSpec
from mixtura.moe.routing import Routing, first_choices
from mixtura.moe.shares import Scope, shares_of

Weight = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class BalanceConfig(Config):
    """Weights of the balancing losses, and the rate of bias balancing.

    A weight left out is what the router's own paper uses: for a softmax router Switch's alpha of
    0.01 (arXiv 2101.03961) and ST-MoE's c_z of 0.001 (2202.08906). One that the router cannot serve
    is refused. `choices` says which rows `loss` counts, and left out it is the router's own: GShard
    counts first choices. `bias_rate` is DeepSeek-V3's gamma (2412.19437); it acts on a choosing
    bias.
    """

    loss: Weight = None
    scope: Scope = "sequence"
    choices: Choices | None = None
    z_loss: Weight = None
    importance: Weight = None
    load: Weight = None
    device: Weight = None
    communication: Weight = None
    threshold: Weight = None
    entropy: Weight = None
    policy: Weight = None
    bias_rate: float = Field(default=0.001, ge=0, allow_inf_nan=False)

    def weights_for(self, router: RouterSpec) -> dict[LossName, float]:
        """The weight of each loss above 0. Raises ValueError for one that `router` cannot serve."""
        weights: dict[LossName, float] = {}
        known = router.served()
        for name, key in _KEYS.items():
            given: float | None = getattr(self, key)
            if name not in known and given:
                served = ", ".join(_KEYS[other] for other in known) or "none"
                raise ValueError(
                    f"balance.{key}={given} under router kind={router.name}, which cannot serve "
                    f"this loss; it serves: {served}"
                )
            weight = known.get(name, 0.0) if given is None else given
            if weight > 0:
                weights[name] = weight
        if self.scope == "global_batch" and "communication" in weights:
            raise ValueError(
                f"balance.communication={weights['communication']} has no meaning under "
                "balance.scope=global_batch, which knows how many rows chose each expert and not "
                "how many tokens a device was sent; set balance.communication=0 or "
                "balance.scope=sequence"
            )
        return weights

    def choices_for(self, router: RouterSpec) -> Choices:
        """Which choices the balance loss counts. Raises ValueError where the scope cannot."""
        choices = router.loss_choices if self.choices is None else self.choices
        if choices == "first" and self.scope == "global_batch":
            raise ValueError(
                "balance.choices=first has no meaning under balance.scope=global_batch, whose load "
                "counts every choice; set balance.choices=all, balance.scope=sequence or "
                "balance.scope=micro_batch"
            )
        return choices


# The losses, and what BalanceConfig calls their weights.
_KEYS: Mapping[LossName, str] = {
    "balance": "loss",
    "z": "z_loss",
    "importance": "importance",
    "load": "load",
    "device": "device",
    "communication": "communication",
    "threshold": "threshold",
    "entropy": "entropy",
    "policy": "policy",
}


def balance_loss(
    routing: Routing, scope: Scope = "sequence", step_load_E: Tensor | None = None
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
    """
    levels = shares_of(routing, scope, step_load_E)
    losses = [shares.loss() for shares in levels if shares.size > 1]
    return sum(losses[1:], losses[0]) / len(losses) if losses else levels[0].loss()


def z_loss(routing: Routing) -> Tensor:
    """mean_t logsumexp(logits_t)^2 (ST-MoE, arXiv 2202.08906, eq. 5); padding left out."""
    assert routing.logits_TE is not None, "this router gives no logits"
    square_T = routing.logits_TE.logsumexp(-1).square()
    if routing.valid_T is None:
        return square_T.sum() / max(square_T.shape[0], 1)
    return (square_T * routing.valid_T).sum() / routing.valid_T.sum().clamp(min=1)


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
    entropy_T = -(probs_TE * log_TE).sum(-1)
    if routing.valid_T is None:
        return entropy_T.sum() / max(entropy_T.shape[0], 1)
    return (entropy_T * routing.valid_T).sum() / routing.valid_T.sum().clamp(min=1)


def threshold_loss(routing: Routing) -> Tensor:
    """sum_i (M_threshold - M_batchwise)(X_ji - T_i), mean over tokens j, padding left out.

    L_batchwise of Shazeer 2017 (arXiv 1701.06538, appendix F), there a sum over j. It teaches the
    thresholds T alone: X, the gate's probabilities, is a constant here.
    """
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_TE, threshold_E = routing.probs_TE.detach(), routing.terms["threshold_E"]
    over_TE = (probs_TE > threshold_E).to(probs_TE.dtype) - routing.terms["kept_TE"].to(probs_TE)
    loss_T = (over_TE * (probs_TE - threshold_E)).sum(-1)
    if routing.valid_T is None:
        return loss_T.sum() / max(loss_T.shape[0], 1)
    return (loss_T * routing.valid_T).sum() / routing.valid_T.sum().clamp(min=1)


LOSSES: Mapping[LossName, Callable[[Routing], Tensor]] = {
    "z": z_loss,
    "importance": importance_loss,
    "load": load_loss,
    "entropy": entropy_loss,
    "threshold": threshold_loss,
}


class Balancer:
    """One layer's weighted losses, and its load since the last optimizer step.

    `sum_over_ranks` turns a local load into the global one; one process needs none.
    """

    def __init__(
        self,
        config: BalanceConfig,
        router: RouterSpec,
        num_experts: int,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.weights = config.weights_for(router)
        self.choices = config.choices_for(router)
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
        return {
            name: weight * self._loss(name, routing)
            for name, weight in self.weights.items()
            if name != "policy"
        }

    def _loss(self, name: LossName, routing: Routing) -> Tensor:
        scope = self.config.scope
        match name:
            case "balance":
                counted = first_choices(routing) if self.choices == "first" else routing
                return balance_loss(counted, scope, self._global_load())
            case "device":
                return device_balance_loss(routing, scope, self._global_load())
            case "communication":
                return communication_loss(routing, scope)
            case _:
                return LOSSES[name](routing)

    def _global_load(self) -> Tensor | None:
        """load_E of the optimizer step so far over all ranks, where the scope asks for it."""
        if self.config.scope != "global_batch":
            return None
        assert self.step_load_E is not None, "observe the routing first"
        return self._over_ranks(self.step_load_E)

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
