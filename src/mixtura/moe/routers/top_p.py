"""A gate whose number of experts depends on the token: as many as reach a probability p together.

T tokens, E experts, K the most experts per token.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from mixtura.moe.routers.router import (
    LossName,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores


class TopPConfig(RouterSpec):
    """Softmax; a token's fewest experts whose probabilities reach `p`, at most top_k of them."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.01, "entropy": 0.0001, "z": 0.001}
    )
    kind: Literal["top_p"] = "top_p"
    p: float = Field(default=0.4, gt=0, le=1)
    """the probability that a token's experts must have together"""
    renormalise: bool = False
    """whether a token's weights are divided by their sum"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(TopPConfig)
class TopP(LinearRouter):
    """P = softmax(W x), largest first; the fewest experts whose P sum to `p` or more; weights P.

    The dynamic routing of "Harder Tasks Need More Experts" (arXiv 2403.07652), with the p of 0.4 of
    its released code. A token takes at least one expert, and at most the layer's top_k; the paper
    has no such bound, and top_k = num_experts is its rule. Unused rows take no room and are not
    rerouted. `renormalise` divides by the sum of the chosen experts' P; a token with one expert
    then gives its gate no gradient.

    The task alone prefers more experts, so the gate learns even probabilities. The entropy loss
    counters that and lets logits grow, which the z-loss counters.

    Cost: one product of E rows a token, and 1 to top_k experts, fewer where one probability is
    large; row buffers are those of top_k. Choose it where some tokens are harder than others and
    the time of a step may vary with them; where it may not, `softmax_topk` gives every token as
    many.
    """

    config: TopPConfig

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def chosen(
        self, scores: Scores, ranking_TE: Tensor, chosen_TK: Tensor, bank_R: Tensor | None
    ) -> Choice:
        sum_TK = scores.score_TE.detach().gather(1, chosen_TK).cumsum(1)
        before_TK = pad(sum_TK[:, :-1], (1, 0))
        # Rounding may leave a sum just below p: 5 of 25 equal experts sum to 0.2.
        enough_TK = before_TK >= self.config.p * (1 - 1e-6)
        chosen_TK = chosen_TK.masked_fill(enough_TK, self.num_experts)
        return super().chosen(scores, ranking_TE, chosen_TK, bank_R)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """The chosen experts' P, maybe renormalised; an unused row, E, weighs 0."""
        none_TK = expert_TK == self.num_experts
        expert_TK = expert_TK.masked_fill(none_TK, 0)
        if self.config.renormalise:
            # Equal to P over the sum of the chosen P, and never 0/0.
            logit_TK = scores.logits_TE.gather(1, expert_TK)
            return logit_TK.masked_fill(none_TK, -float("inf")).softmax(-1)
        return scores.score_TE.gather(1, expert_TK).masked_fill(none_TK, 0.0)
