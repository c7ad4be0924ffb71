"""SparseMixer: two experts a token, each sampled among the experts with nearly the best logit.

The gate gets an estimate of the gradient through the sampling. T tokens, E experts, K = 2 experts
per token.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.moe.capacity import Policy
from mixtura.moe.routers.router import RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores


class SparseMixerConfig(RouterSpec):
    """SparseMixer-v2: two experts a token, each sampled among the experts near the best logit.

    The weight is a softmax over these experts. The second choice excludes the first expert.
    """

    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType(
        {
            "reroute": "a weight here is that of the first or of the second choice, and a moved "
            "row is neither; choose policy=drop, policy=wave or policy=dropless"
        }
    )
    kind: Literal["sparse_mixer"] = "sparse_mixer"
    tolerance: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """half of the largest relative distance from the best logit at which an expert may still be
    sampled"""

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 2:
            raise ValueError(
                f"top_k={top_k} under router kind=sparse_mixer, which samples twice; set top_k=2, "
                "kind=switch for one expert or kind=softmax_topk for more"
            )


@register_router(SparseMixerConfig)
class SparseMixer(LinearRouter):
    """p = softmax of s = W x over {i: (max s - s_i) / max(|s_i|, max s) <= 2 tolerance}; weight p.

    The second expert is chosen in the same way among all experts except the first. This is
    SparseMixer-v2 of GRIN (arXiv 2409.12136), the router of Phi-3.5-MoE, whose config calls the
    tolerance `router_jitter_noise` and sets 0.01. Each of the two weights is a probability of its
    own sampling. So the weights do not sum to 1, and a weight is 1 if no other expert lies within
    the tolerance. Evaluation takes the expert with the largest p; training samples the expert from
    p.

    The gate's gradient for a sampled expert D is the gradient of p_D times the slope of the task's
    loss along the expert's output. For the likeliest expert the slope is taken at weight p_D, as in
    evaluation. For any other expert the slope is taken at weight p_D with probability 1/4, and at
    weight p_D / 3 with probability 3/4; the forward pass uses the same weight. This is Heun's
    third-order rule: its mean is the change of the loss from no expert to this expert, exactly for
    losses that are cubic in the weight. As in transformers, the set of experts within the tolerance
    is a constant for the gradient, and the slope for the likeliest expert is only of first order.

    Cost: each token is multiplied with the gate's E rows and computed by two experts. Choose it to
    run or to train further a model that was trained with it; if the tolerance is so small that few
    experts lie within it, the task trains the gate little. Otherwise choose `softmax_topk`, which
    needs no sampling and gives every token a gradient.
    """

    config: SparseMixerConfig

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        scores = self.scores(x_TD, bank_R)
        first_T1, first_weight_T1 = self._sampled(scores.logits_TE)
        rest_TE = scores.logits_TE.scatter(1, first_T1, -torch.inf)
        second_T1, second_weight_T1 = self._sampled(rest_TE)
        chosen_TK = torch.cat([first_T1, second_T1], 1)
        return Choice(
            chosen_TK=chosen_TK,
            weight_TK=torch.cat([first_weight_T1, second_weight_T1], 1),
            logits_TE=scores.logits_TE,
            probs_TE=scores.probs_TE,
            ranking_TE=scores.score_TE.detach(),
        )

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        raise AssertionError("the config refuses policies that move rows")

    def _sampled(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """(expert_T1, weight_T1) of one sample; an expert whose logit is -inf cannot be sampled."""
        probs_TE = near_best(logits_TE, self.config.tolerance).softmax(-1)
        best_T1 = logits_TE.argmax(-1, keepdim=True)
        if not self.training:
            return best_T1, probs_TE.gather(1, best_T1)
        # The expert with the largest sum of log p and Gumbel noise is a sample from p.
        noise_TE = -torch.empty_like(probs_TE).exponential_().log()
        expert_T1 = (probs_TE.detach().log() + noise_TE).argmax(-1, keepdim=True)
        whole_T1 = expert_T1 == best_T1
        whole_T1 = whole_T1 | (torch.rand_like(probs_TE[:, :1]) < 0.25)
        return expert_T1, scaled(probs_TE.gather(1, expert_T1), whole_T1)


def near_best(logits_TE: Tensor, tolerance: float) -> Tensor:
    """The logits, with -inf for an expert that is too far below the best expert.

    The distance is measured as in transformers.
    """
    with torch.no_grad():
        best_T1 = logits_TE.amax(-1, keepdim=True)
        size_TE = torch.maximum(logits_TE.abs(), best_T1)
        far_TE = (best_T1 - logits_TE) / size_TE > 2 * tolerance
    return logits_TE.masked_fill(far_TE, -torch.inf)


def scaled(prob_T1: Tensor, whole_T1: Tensor) -> Tensor:
    """p where `whole_T1` is True, else p / 3; in both cases the gradient is that of p."""
    third_T1 = torch.where(whole_T1, 0.0, -2 / 3 * prob_T1.detach())
    return prob_T1 + third_T1
