"""A gate that chooses, for each token, the fewest experts whose probabilities sum to p.

T tokens, E experts, K the largest number of experts per token.
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
    """Softmax over all experts; a token gets the fewest experts whose probabilities sum to `p`.

    The layer's top_k is the largest number of experts of a token.
    """

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.01, "entropy": 0.0001, "z": 0.001}
    )
    kind: Literal["top_p"] = "top_p"
    p: float = Field(default=0.4, gt=0, le=1)
    """the sum that the probabilities of a token's experts must reach"""
    renormalise: bool = False
    """whether a token's weights are divided by their sum"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(TopPConfig)
class TopP(LinearRouter):
    """P = softmax(W x); a token gets the fewest experts whose P sum to `p` or more, with weights P.

    This is the dynamic routing of "Harder Tasks Need More Experts" (arXiv 2403.07652), with p = 0.4
    as in the paper's released code. A token gets at least one expert and at most the layer's top_k.
    The paper has no such maximum; set top_k = num_experts to follow the paper. Unused rows take no
    room at experts and are not rerouted. `renormalise` divides the weights by the sum of the chosen
    experts' P; a token with one expert then gives the gate no gradient.

    The task's loss favours more experts, so on its own it leads the gate to even probabilities. The
    entropy loss prevents this, but lets logits grow; the z-loss keeps logits small.

    Cost: each token is multiplied with the gate's E rows and computed by 1 to top_k experts, by
    fewer if one probability is large. The routing has top_k rows for each token, unused rows
    included. Choose it where some tokens are harder than others and the time of a step may vary; if
    the time must not vary choose `softmax_topk`, which gives all tokens equally many experts.
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
        # Rounding may make a sum slightly too small: 5 probabilities of 1/25 should reach p = 0.2.
        # The factor keeps such a token from getting a sixth expert.
        enough_TK = before_TK >= self.config.p * (1 - 1e-6)
        chosen_TK = chosen_TK.masked_fill(enough_TK, self.num_experts)
        return super().chosen(scores, ranking_TE, chosen_TK, bank_R)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """The P of the given experts, divided by their sum if `renormalise` is True.

        An unused row, whose expert is E, has the weight 0.
        """
        none_TK = expert_TK == self.num_experts
        expert_TK = expert_TK.masked_fill(none_TK, 0)
        if self.config.renormalise:
            # This equals P divided by the sum of the chosen P, and is never 0/0.
            logit_TK = scores.logits_TE.gather(1, expert_TK)
            return logit_TK.masked_fill(none_TK, -float("inf")).softmax(-1)
        return scores.score_TE.gather(1, expert_TK).masked_fill(none_TK, 0.0)
