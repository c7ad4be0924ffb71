"""Expert choice without reading later tokens: an expert takes every token above its threshold.

T tokens, E experts, K the largest number of experts per token.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.expert_choice import rows_each
from mixtura.moe.routers.router import LossName, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores
from mixtura.ranks import Ranks


class ExpertThresholdConfig(RouterSpec):
    """Expert choice for language models: an expert's threshold is learned from earlier batches."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.0, "z": 0.0, "importance": 0.0}
    )
    kind: Literal["expert_threshold"] = "expert_threshold"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """the momentum of the moving average over optimizer steps that gives the thresholds"""
    most: int | None = Field(default=None, ge=1)
    """the largest number of experts per token; null for twice the layer's top_k, where top_k is the
    mean number"""

    def check(self, num_experts: int, top_k: int) -> None:
        check_most(self.most, num_experts, top_k)


@register_router(ExpertThresholdConfig)
class ExpertThreshold(LinearRouter):
    """S = softmax(x W); a token gets the experts with S_i >= threshold_i; the weights are S.

    This is a causal form of expert choice (Zhou et al. 2022, arXiv 2202.09368). In expert choice an
    expert takes the tokens with the k largest S_i of a batch, where k = n c / E for n tokens, and c
    is the layer's top_k, the mean number of experts per token. Here threshold_i is a moving average
    of the k-th largest S_i over optimizer steps, so a choice does not need the batch. Shazeer 2017
    also decides by thresholds, in M_threshold (arXiv 1701.06538, appendix F), but learns them by
    gradient; the moving average is our own. A token gets at most `most` experts, those with the
    largest S, and may get none.

    The router reads no later tokens, in training or in evaluation: every choice uses thresholds of
    earlier steps, which `mixtura.moe.end_step` changes only after a step. All thresholds start at
    1/E, the score of an even gate, and the first step replaces them. The load of an expert is near
    c T / E for text like that of the last steps, but never exactly c T / E; a balance loss can be
    added.

    Cost: each token is multiplied with the gate's E rows and computed by c experts on average.
    Training also finds the k-th largest of n scores for each of E experts. The routing has `most`
    rows for each token, unused rows included. Choose it for a language model whose tokens should
    have different numbers of experts at an even load; do not choose it where the kind of text
    changes, because thresholds learned on other text do not balance the load.
    """

    config: ExpertThresholdConfig
    threshold_E: Tensor
    steps_seen: Tensor

    def __init__(
        self, config: ExpertThresholdConfig, shape: RouterShape, capacity: Capacity
    ) -> None:
        super().__init__(config, shape, capacity)
        even_E = torch.full((shape.num_experts,), 1 / shape.num_experts, dtype=torch.float32)
        self.register_buffer("threshold_E", even_E)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self._kth_sum_E: Tensor | None = None
        self._batches = 0

    @property
    def rows_per_token(self) -> int:
        return most_experts(self.config.most, self.shape)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        scores = self.scores(x_TD, bank_R)
        score_TE = scores.score_TE.detach()
        if self.training:
            self._observe(score_TE if valid_R is None else score_TE[valid_R])
        chosen_TK = best_allowed(score_TE, score_TE >= self.threshold_E, self.rows_per_token)
        return self.chosen(scores, score_TE, chosen_TK, bank_R)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """The scores of the given experts; 0 for an unused row, whose expert is E."""
        none_TK = expert_TK == self.num_experts
        weight_TK = scores.score_TE.gather(1, expert_TK.masked_fill(none_TK, 0))
        return weight_TK.masked_fill(none_TK, 0.0)

    def _observe(self, score_XE: Tensor) -> None:
        """Record the k-th largest score of each expert in a batch of X tokens, without padding."""
        if len(score_XE) == 0:
            return
        taken = rows_each(len(score_XE), self.top_k, self.num_experts)
        kth_E = score_XE.kthvalue(len(score_XE) - taken + 1, dim=0).values.to(self.threshold_E)
        self._kth_sum_E = kth_E if self._kth_sum_E is None else self._kth_sum_E + kth_E
        self._batches += 1

    def end_step(self, ranks: Ranks) -> None:
        """Set each threshold to m * threshold + (1 - m) * the mean k-th largest score of this step.

        m is the momentum. In the first steps m is smaller, so that the threshold is the mean over
        all steps so far.
        """
        sum_E = self._kth_sum_E
        if sum_E is None:
            sum_E = torch.zeros_like(self.threshold_E)
        # A rank without tokens sums zeros, because `sum` waits until every rank has called it.
        total = ranks.sum(torch.cat([sum_E, sum_E.new_tensor([self._batches])]))
        self._kth_sum_E, self._batches = None, 0
        if total[-1] == 0:
            return
        steps = self.steps_seen.to(total.dtype)
        momentum = (steps / (steps + 1)).clamp(max=self.config.momentum)
        self.threshold_E.lerp_(total[:-1] / total[-1], 1 - momentum)
        self.steps_seen += 1


def best_allowed(score_TE: Tensor, allowed_TE: Tensor, most: int) -> Tensor:
    """chosen_TK: each token's best allowed experts, at most `most`; E for unused rows."""
    # Scores are in 0..1, so subtracting 2 ranks all other experts below the allowed experts.
    best_TK = torch.where(allowed_TE, score_TE, score_TE - 2).topk(most).indices
    return best_TK.masked_fill(~allowed_TE.gather(1, best_TK), score_TE.shape[1])


def most_experts(most: int | None, shape: RouterShape) -> int:
    """`most`, or by default twice the mean number of experts per token, but at most all experts."""
    return min(2 * shape.top_k, shape.num_experts) if most is None else most


def check_most(most: int | None, num_experts: int, top_k: int) -> None:
    """Raises ValueError unless top_k <= most <= num_experts."""
    if most is not None and not top_k <= most <= num_experts:
        raise ValueError(
            f"router.most={most} must lie in top_k={top_k}..num_experts={num_experts}; "
            "top_k is the mean number of experts per token, and most the bound on each"
        )
