"""The weights of a layer's balancing losses, and the layer's load over an optimizer step.

E experts.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mixtura.config import Config
from mixtura.moe.load import load
from mixtura.moe.losses import LOSSES, Need
from mixtura.moe.routers.router import CountedChoices, LossName, RouterSpec
from mixtura.moe.routing import Routing
from mixtura.moe.shares import LossScope
from mixtura.ranks import ONE_RANK, Ranks

LossWeight = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class BalanceConfig(Config):
    """Weights of the balancing losses, and the rate of bias balancing.

    If a weight is None, the router's default is used, which is usually a value from a paper. For
    example, the defaults of a softmax router are 0.01 for `loss`, the alpha of Switch (arXiv
    2101.03961), and 0.001 for `z_loss`, the c_z of ST-MoE (arXiv 2202.08906). A weight above 0 is
    refused for a loss that the router does not support. `choices` selects the rows that the balance
    loss counts: all rows, or each token's first choice. The default is the router's: first choices
    for GShard, all rows for other routers. `bias_rate` is the amount by which a choosing bias
    changes in each optimizer step, the gamma of DeepSeek-V3 (arXiv 2412.19437).
    """

    loss: LossWeight = None
    scope: LossScope = "sequence"
    choices: CountedChoices | None = None
    z_loss: LossWeight = None
    importance: LossWeight = None
    load: LossWeight = None
    device: LossWeight = None
    communication: LossWeight = None
    threshold: LossWeight = None
    entropy: LossWeight = None
    policy: LossWeight = None
    bias_rate: float = Field(default=0.001, ge=0, allow_inf_nan=False)

    def weights_for(self, router: RouterSpec) -> dict[LossName, float]:
        """The losses whose weight is above 0, with their weights.

        Raises ValueError for a loss that `router` does not support, and for the communication loss
        under scope `global_batch`.
        """
        weights: dict[LossName, float] = {}
        known = router.served()
        for name, loss in LOSSES.items():
            given: float | None = getattr(self, loss.weight_key)
            if name not in known and given:
                served = ", ".join(LOSSES[other].weight_key for other in known) or "none"
                raise ValueError(
                    f"balance.{loss.weight_key}={given} under router kind={router.name}, which "
                    f"cannot serve this loss; it serves: {served}"
                )
            weight = known.get(name, 0.0) if given is None else given
            if weight > 0:
                weights[name] = weight
        if self.scope == "global_batch" and "communication" in weights:
            raise ValueError(
                f"balance.communication={weights['communication']} has no meaning under "
                "balance.scope=global_batch, which counts the rows of each expert and not "
                "the tokens sent to a device; set balance.communication=0 or "
                "balance.scope=sequence"
            )
        return weights

    def choices_for(self, router: RouterSpec) -> CountedChoices:
        """The choices that the balance loss counts.

        Raises ValueError for first choices under scope `global_batch`.
        """
        choices = router.loss_choices if self.choices is None else self.choices
        if choices == "first" and self.scope == "global_batch":
            raise ValueError(
                "balance.choices=first has no meaning under balance.scope=global_batch, whose load "
                "counts every choice; set balance.choices=all, balance.scope=sequence or "
                "balance.scope=micro_batch"
            )
        return choices


class Balancer:
    """The weighted losses of one layer, and the layer's load since the last optimizer step.

    `ranks` sums the loads of all ranks.
    """

    def __init__(
        self,
        config: BalanceConfig,
        router: RouterSpec,
        num_experts: int,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.config = config
        self.weights = config.weights_for(router)
        self.choices = config.choices_for(router)
        self.num_experts = num_experts
        self.ranks = ranks
        self._earlier_E: Tensor | None = None
        self._current_E: Tensor | None = None

    @property
    def step_load_E(self) -> Tensor | None:
        """This rank's load in the current optimizer step so far, int64.

        It is None before the first forward pass of the step.
        """
        if self._earlier_E is None or self._current_E is None:
            return self._current_E if self._earlier_E is None else self._earlier_E
        return self._earlier_E + self._current_E

    def observe(self, routing: Routing) -> None:
        """Record the load of a forward pass.

        If activation checkpointing repeats the pass, the load is recorded again, but not added
        twice.
        """
        self._current_E = load(routing)

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """The layer's losses by name, each times its weight; call `observe` first.

        Late losses, which need the model's output, are not included.
        """
        weighed = [(LOSSES[name], weight) for name, weight in self.weights.items()]
        now = [(loss, weight) for loss, weight in weighed if not loss.is_late]
        given: dict[Need, object] = {"scope": self.config.scope, "choices": self.choices}
        if any("step_load_E" in loss.needs for loss, _ in now):
            given["step_load_E"] = self._global_load()
        return {loss.name: weight * loss.of(routing, given) for loss, weight in now}

    def _global_load(self) -> Tensor | None:
        """load_E of the optimizer step so far, summed over all ranks.

        It is None if the scope is not `global_batch`.
        """
        if self.config.scope != "global_batch":
            return None
        load_E = self.step_load_E
        assert load_E is not None, "observe the routing first"
        # A copy is summed, because `sum` may overwrite its argument and the local load is still
        # needed.
        return self.ranks.sum(load_E.clone())

    def end_micro_step(self) -> None:
        """End a micro-step, which is one backward pass under gradient accumulation.

        The next forward pass then adds its load to the load so far.
        """
        self._earlier_E, self._current_E = self.step_load_E, None

    def end_step(self, device: torch.device) -> Tensor:
        """End an optimizer step: return its load, summed over all ranks, and reset the load."""
        load_E = self.step_load_E
        if load_E is None:
            # A rank without tokens sums zeros, because `sum` waits until every rank has called it.
            load_E = torch.zeros(self.num_experts, dtype=torch.int64, device=device)
        self._earlier_E = self._current_E = None
        return self.ranks.sum(load_E)
