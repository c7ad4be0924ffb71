"""Shazeer's strictly balanced gate: masks over a batch in training, thresholds afterwards.

T tokens, E experts, K the most experts per token, N routed rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import log
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixtura.moe.capacity import Capacity, Policy
from mixtura.moe.routers.expert_choice import (
    BUILT_IN_CAPACITY,
    Taken,
    best_tokens,
    refuse_capacity,
)
from mixtura.moe.routers.expert_threshold import best_allowed, check_most, most_experts
from mixtura.moe.routers.router import LossName, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens
from mixtura.shapes.ledger import Weight


class BatchwiseConfig(RouterSpec):
    """Shazeer 2017, appendix F: equally many tokens an expert; in evaluation learned thresholds."""

    # AdamW changes a threshold by its rate whatever the weight. But gradients are clipped together,
    # and E of them are of this loss, each the share of tokens by which an expert is off.
    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"threshold": 0.01, "z": 0.0, "importance": 0.0}
    )
    refused_policies: ClassVar[Mapping[Policy, str]] = BUILT_IN_CAPACITY
    causal_in_training: ClassVar[bool] = False
    kind: Literal["batchwise"] = "batchwise"
    mask: Literal["batchwise", "threshold"] = "batchwise"
    """the mask in training; evaluation always uses the threshold"""
    most: int | None = Field(default=None, ge=1)
    """the most experts per token under the threshold; null: twice the layer's top_k"""
    accept_leak: bool = False
    """true allows training a language model with `mask: batchwise`, which reads later tokens"""

    @property
    def leaks_in_training(self) -> bool:
        return self.mask == "batchwise" and not self.accept_leak

    def check(self, num_experts: int, top_k: int) -> None:
        if num_experts == 1:
            raise ValueError(
                "num_experts=1 under router kind=batchwise makes every combine weight the constant "
                "1 and leaves no threshold to learn; choose kind=switch, or more experts"
            )
        check_most(self.most, num_experts, top_k)

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        yield from super().weights(shape, prefix)
        yield Weight(f"{prefix}log_threshold", (shape.num_experts,), "router")


@register_router(BatchwiseConfig)
class Batchwise(LinearRouter):
    """G(x)_i = Gs_i M_i / sum_j Gs_j M_j, with Gs = softmax(x W) and a mask M of 0 and 1.

    Strictly balanced gating (Shazeer et al. 2017, arXiv 1701.06538, appendix F). In training
    M_batchwise keeps for each expert the top m = k |X| / n of the batch's |X| tokens, where k is
    the layer's top_k and n the number of experts (m is rounded up; tokens are those of this rank's
    micro-batch). In evaluation M_threshold(x, T)_i = 1[x_i > T_i], with at most `most` experts a
    token. The loss L_batchwise = sum_j sum_i (M_threshold - M_batchwise)(X_ji - T_i), here over
    |X|, trains only T, to select as many tokens as the batch's mask did: its gradient is the number
    of tokens too few or too many. T is stored as exp(log_threshold), which starts at 1/E, so that
    an optimizer step changes it by a share for any E. `mask: threshold` trains with M_threshold
    too, and T still learns from the batch.

    M_batchwise leaks only in training: a token's experts depend on the other tokens of the batch,
    later ones too. Training a language model with it needs `accept_leak`. `mask: threshold`, and
    evaluation, read only the token itself.

    Cost: one product of E rows a token; in training E selections of m among |X| and k |X| rows for
    the experts; in evaluation k experts on average, row buffers of `most`. Choose it to repeat
    appendix F, or where exactly even load in training matters more than the leak; in a language
    model prefer `mask: threshold` or `expert_threshold`.
    """

    config: BatchwiseConfig

    def __init__(self, config: BatchwiseConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        even_E = torch.full((shape.num_experts,), -log(shape.num_experts))
        self.log_threshold = nn.Parameter(even_E)

    @property
    def rows_per_token(self) -> int:
        return most_experts(self.config.most, self.shape)

    def threshold_E(self, like: Tensor) -> Tensor:
        """T, in the dtype of the scores."""
        return self.log_threshold.to(like.dtype).exp()

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        refuse_capacity(capacity, self.config)
        scores = self.scores(tokens.x_TD, None)
        if not self.training:
            return self.routed(self._passing(scores), tokens, capacity)
        taken = best_tokens(scores.probs_TE, tokens.valid_T, 1, self.top_k)
        terms = {
            "threshold_E": self.threshold_E(scores.probs_TE),
            "kept_TE": _kept(taken, scores.probs_TE),
        }
        if self.config.mask == "threshold":
            choice = replace(self._passing(scores), terms=terms)
            return self.routed(choice, tokens, capacity)
        gate_N = taken.of(scores.probs_TE)
        return Routing(
            token_N=taken.token_N,
            choice_N=taken.choice_N,
            chosen_N=taken.expert_N,
            expert_N=taken.expert_N,
            weight_N=_over_sum_of_token(gate_N, taken.token_N, len(tokens.x_TD)),
            logits_TE=scores.logits_TE,
            probs_TE=scores.probs_TE,
            valid_T=tokens.valid_T,
            num_experts=self.num_experts,
            num_sequences=tokens.num_sequences,
            terms=terms,
        )

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        return self._passing(self.scores(x_TD, bank_R))

    def _passing(self, scores: Scores) -> Choice:
        """The choice under M_threshold."""
        score_TE = scores.probs_TE.detach()
        passes_TE = score_TE > self.threshold_E(score_TE).detach()
        chosen_TK = best_allowed(score_TE, passes_TE, self.rows_per_token)
        return self.chosen(scores, score_TE, chosen_TK, None)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """Renormalised over the chosen experts; an unused row, E, weighs 0."""
        none_TK = expert_TK == self.num_experts
        weight_TK = scores.probs_TE.gather(1, expert_TK.masked_fill(none_TK, 0))
        weight_TK = weight_TK.masked_fill(none_TK, 0.0)
        return weight_TK / _above_zero(weight_TK.sum(-1, keepdim=True))


def _kept(taken: Taken, like_TE: Tensor) -> Tensor:
    """kept_TE: M_batchwise."""
    num_tokens, num_experts = like_TE.shape
    # The extra column is for unused rows.
    kept = torch.zeros(num_tokens, num_experts + 1, dtype=torch.bool, device=like_TE.device)
    kept[taken.token_N, taken.expert_N] = True
    return kept[:, :-1]


def _over_sum_of_token(weight_N: Tensor, token_N: Tensor, num_tokens: int) -> Tensor:
    sum_T = weight_N.new_zeros(num_tokens).index_add(0, token_N, weight_N)
    return weight_N / _above_zero(sum_T)[token_N]


def _above_zero(total: Tensor) -> Tensor:
    """At least the smallest positive number, so that a token without an expert gives 0, not 0/0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
