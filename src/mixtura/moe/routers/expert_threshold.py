"""Expert choice without reading later tokens: an expert takes every token above its threshold.

T tokens, E experts, K the most experts per token.
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
    """Expert choice for language models: thresholds learned from earlier batches."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.0, "z": 0.0, "importance": 0.0}
    )
    kind: Literal["expert_threshold"] = "expert_threshold"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """of the moving average over optimizer steps"""
    most: int | None = Field(default=None, ge=1)
    """the most experts per token; null: twice the layer's top_k, which is the mean"""

    def check(self, num_experts: int, top_k: int) -> None:
        check_most(self.most, num_experts, top_k)


@register_router(ExpertThresholdConfig)
class ExpertThreshold(LinearRouter):
    """S = softmax(x W); a token takes the experts with S_i >= threshold_i; weights are S.

    The causal form of expert choice (Zhou et al. 2022, arXiv 2202.09368): the k-th largest score
    among a batch's tokens is not looked up but remembered. threshold_i is a moving average, over
    optimizer steps, of the k-th largest S_i, with k = n c / E for n tokens and c the layer's top_k,
    the mean number of experts per token. Deciding by a threshold is Shazeer 2017's M_threshold
    (arXiv 1701.06538, appendix F); the moving average instead of a learned threshold is our own. A
    token takes at most `most` experts, its best ones, and maybe none.

    Nothing leaks, in training or in evaluation: every choice reads the thresholds of earlier steps,
    and `mixtura.moe.end_step` changes them only after a step. They start at 1/E, an even gate's
    score, and the first step replaces them. Load is near c T / E on data like that of the last
    steps, and never exact; a balance loss can be added.

    Cost: one product of E rows a token, and in training E selections of k among n; c experts on
    average, row buffers of `most`. Choose it for a language model whose tokens should have
    different numbers of experts at an even load; not where the kind of text changes, since
    thresholds of other text do not balance it.
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
        """The scores of the chosen experts; an unused row, E, weighs 0."""
        none_TK = expert_TK == self.num_experts
        weight_TK = scores.score_TE.gather(1, expert_TK.masked_fill(none_TK, 0))
        return weight_TK.masked_fill(none_TK, 0.0)

    def _observe(self, score_XE: Tensor) -> None:
        """Record a batch's k-th largest scores; X tokens without padding."""
        if len(score_XE) == 0:
            return
        taken = rows_each(len(score_XE), self.top_k, self.num_experts)
        kth_E = score_XE.kthvalue(len(score_XE) - taken + 1, dim=0).values.to(self.threshold_E)
        self._kth_sum_E = kth_E if self._kth_sum_E is None else self._kth_sum_E + kth_E
        self._batches += 1

    def end_step(self, ranks: Ranks) -> None:
        """threshold <- m threshold + (1 - m) seen; at first the mean of all steps so far."""
        sum_E = self._kth_sum_E
        if sum_E is None:
            sum_E = torch.zeros_like(self.threshold_E)
        # A rank without tokens sums zeros, or the other ranks would wait for ever.
        total = ranks.sum(torch.cat([sum_E, sum_E.new_tensor([self._batches])]))
        self._kth_sum_E, self._batches = None, 0
        if total[-1] == 0:
            return
        steps = self.steps_seen.to(total.dtype)
        momentum = (steps / (steps + 1)).clamp(max=self.config.momentum)
        self.threshold_E.lerp_(total[:-1] / total[-1], 1 - momentum)
        self.steps_seen += 1


def best_allowed(score_TE: Tensor, allowed_TE: Tensor, most: int) -> Tensor:
    """chosen_TK: the `most` best of each token's allowed experts; E for unused rows."""
    # Scores lie in 0..1, so subtracting 2 puts all other experts behind the allowed ones.
    best_TK = torch.where(allowed_TE, score_TE, score_TE - 2).topk(most).indices
    return best_TK.masked_fill(~allowed_TE.gather(1, best_TK), score_TE.shape[1])


def most_experts(most: int | None, shape: RouterShape) -> int:
    return min(2 * shape.top_k, shape.num_experts) if most is None else most


def check_most(most: int | None, num_experts: int, top_k: int) -> None:
    """Raises ValueError unless `most` lies between the mean number of experts and all of them."""
    if most is not None and not top_k <= most <= num_experts:
        raise ValueError(
            f"router.most={most} must lie in top_k={top_k}..num_experts={num_experts}; "
            "top_k is the mean number of experts per token, and most the bound on each"
        )
