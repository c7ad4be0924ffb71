"""The noisy top-k gate of the sparsely-gated layer (Shazeer 2017).

T tokens, D model width, E experts, K experts per token, G banks (the gates of the groups inside a
hierarchical router; otherwise one gate).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.kernels.topk import topk
from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.router import (
    RouterShape,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores, linear
from mixtura.shapes.ledger import Weight

LEAST_DEVIATION = 1e-6


class NoisyTopKConfig(RouterSpec):
    """Shazeer 2017: noise of learned size is added to W x, then top-k, then softmax over the k.

    All weights of the gate start at 0.
    """

    losses: ClassVar = MappingProxyType({"importance": 0.1, "load": 0.1, "balance": 0.0, "z": 0.0})
    has_one_gate: ClassVar[bool] = True
    kind: Literal["noisy_topk"] = "noisy_topk"

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        refuse_single_renormalised(top_k, self.kind, "choose kind=switch for one expert a token")

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        yield from super().weights(shape, prefix)
        rows = shape.banks * shape.num_experts
        yield Weight(f"{prefix}noise_weight", (rows, shape.width), "router")


@dataclass(frozen=True, slots=True)
class NoisyScores(Scores):
    """`logits_TE` are W x without noise. In training, `score_TE` are the logits plus noise."""

    deviation_TE: Tensor
    """the standard deviation of the noise: Softplus(x W_noise)"""


@register_router(NoisyTopKConfig)
class NoisyTopK(LinearRouter):
    """G(x) = Softmax(KeepTopK(H(x), k)), H(x)_i = (x W_g)_i + N(0, 1) Softplus((x W_noise)_i).

    This is the gate of arXiv 1701.06538, eq. 3-5; both matrices start at 0 (appendix A). Evaluation
    adds no noise. In training the routing's terms contain `load_E`, the smooth Load(X) of eq. 10.

    Cost: each token is multiplied with both matrices (2 E rows) in training and with one (E rows)
    in evaluation, and computed by k experts. Choose it to reproduce Shazeer 2017, or where a gate
    settles too early: the noise, of learned size, tries experts that rank just below the k best. If
    training must choose experts as evaluation does, choose `topk_softmax`, the same gate without
    noise.
    """

    def __init__(self, config: NoisyTopKConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        self.noise_weight = nn.Parameter(torch.zeros_like(self.weight))
        nn.init.zeros_(self.weight)

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> NoisyScores:
        banks = self.shape.banks
        clean_TE = linear(x_TD, self.weight, bank_R, banks)
        probs_TE = clean_TE.softmax(-1)
        if not self.training:
            return NoisyScores(clean_TE, clean_TE, probs_TE, torch.zeros_like(clean_TE))
        deviation_TE = F.softplus(linear(x_TD, self.noise_weight, bank_R, banks))
        noisy_TE = clean_TE + torch.randn_like(clean_TE) * deviation_TE
        return NoisyScores(clean_TE, noisy_TE, probs_TE, deviation_TE)

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK).softmax(-1)

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        scores = self.scores(x_TD, bank_R)
        ranking_TE = self.rank(scores, bank_R)
        # The smooth load compares the score of an expert with the k-th or the (k+1)-th best score,
        # so k + 1 experts are found.
        deepest = min(self.top_k + 1, self.num_experts)
        best_TK = topk(ranking_TE, deepest if self.training else self.top_k)
        choice = self.chosen(scores, ranking_TE, best_TK[:, : self.top_k], bank_R)
        if not self.training:
            return choice
        selected_TE = selection_probability(scores, best_TK, self.top_k)
        if valid_R is not None:
            selected_TE = selected_TE * valid_R[:, None]
        return replace(choice, load_GE=self._by_bank(selected_TE, bank_R))

    def _by_bank(self, of_TE: Tensor, bank_R: Tensor | None) -> Tensor:
        """The sums of `of_TE` over the rows of each bank."""
        if bank_R is None:
            return of_TE.sum(0, keepdim=True)
        zeros_GE = of_TE.new_zeros(self.shape.banks, self.num_experts)
        return zeros_GE.index_add(0, bank_R, of_TE)


def selection_probability(scores: NoisyScores, best_TK: Tensor, top_k: int) -> Tensor:
    """P(x, i): the probability that expert i is among the k best if its noise is sampled again.

    This is Phi((clean_i - kth_excluding(H, k, i)) / deviation_i) of arXiv 1701.06538, eq. 8 and 9.
    `best_TK` are the k + 1 experts with the best noisy scores. If there are at most k experts,
    every probability is 1.
    """
    if best_TK.shape[1] <= top_k:
        return torch.ones_like(scores.logits_TE)
    best = scores.score_TE.gather(1, best_TK)
    kth_T1, next_T1 = best[:, top_k - 1 : top_k], best[:, top_k : top_k + 1]
    # An expert is chosen if its score exceeds the k-th best score of the other experts. That is the
    # (k+1)-th of all scores for an expert that is chosen now, else the k-th.
    inside_TE = scores.score_TE >= kth_T1
    threshold_TE = torch.where(inside_TE, next_T1, kth_T1)
    # Training may shrink the deviation to almost 0. Then 1 / deviation^2 in the gradient overflows
    # to inf, and inf times a density of 0 is NaN; so the deviation is clamped.
    deviation_TE = scores.deviation_TE.clamp(min=LEAST_DEVIATION)
    return torch.special.ndtr((scores.logits_TE - threshold_TE) / deviation_TE)
