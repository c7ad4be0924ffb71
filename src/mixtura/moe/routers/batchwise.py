"""Shazeer's strictly balanced gate: in training each expert takes its best tokens of the batch, and
in evaluation the tokens above a learned threshold.

T tokens, E experts, K the largest number of experts per token, N routed rows.
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
    """Shazeer 2017, appendix F: in training all experts take equally many tokens.

    In evaluation an expert takes the tokens whose score is above a learned threshold.
    """

    # AdamW changes a threshold by the same amount for any weight of this loss. The weight matters
    # only because all gradients are clipped by their common norm, which includes the E gradients of
    # this loss. Each of these is the share of tokens by which an expert's threshold selects too
    # many or too few.
    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"threshold": 0.01, "z": 0.0, "importance": 0.0}
    )
    refused_policies: ClassVar[Mapping[Policy, str]] = BUILT_IN_CAPACITY
    causal_in_training: ClassVar[bool] = False
    kind: Literal["batchwise"] = "batchwise"
    mask: Literal["batchwise", "threshold"] = "batchwise"
    """the mask in training; evaluation always uses the threshold"""
    most: int | None = Field(default=None, ge=1)
    """the largest number of experts per token under the threshold; null for twice the layer's
    top_k"""
    accept_leak: bool = False
    """whether a language model may be trained with `mask: batchwise`, which reads later tokens"""

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

    This is strictly balanced gating (Shazeer et al. 2017, arXiv 1701.06538, appendix F). In
    training the mask is M_batchwise, which keeps for each expert the m tokens with the largest
    scores. m is k |X| / n, rounded up, for the |X| tokens of this rank's micro-batch, n experts,
    and k, the layer's top_k. In evaluation the mask is M_threshold(x, T)_i, which is 1 if x_i >
    T_i, else 0; a token has at most `most` experts. Under `mask: threshold` training uses
    M_threshold too.

    The loss L_batchwise = sum_j sum_i (M_threshold - M_batchwise)(X_ji - T_i), divided here by |X|,
    trains only the thresholds T, under either mask. Its gradient for T_i is the share of tokens by
    which T_i selects too many or too few, compared with M_batchwise. The stored parameter is the
    logarithm of T and starts at log(1/E), so that an optimizer step changes T by the same ratio for
    any E.

    M_batchwise reads later tokens, but only in training: a token's experts depend on all tokens of
    the batch. Training a language model with it needs `accept_leak`. `mask: threshold`, and
    evaluation, read only the token itself.

    Cost: each token is multiplied with the gate's E rows. Training selects the m best of |X| tokens
    for each of the E experts, and computes k |X| rows. In evaluation a token is computed by k
    experts on average, and the routing has `most` rows for each token, unused rows included. Choose
    it to reproduce appendix F, or where training needs exactly even load and may read later tokens;
    for a language model choose `mask: threshold` or `expert_threshold`.
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
        """The thresholds T, in the dtype of the scores."""
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
        """The choice of each token's experts under M_threshold."""
        score_TE = scores.probs_TE.detach()
        passes_TE = score_TE > self.threshold_E(score_TE).detach()
        chosen_TK = best_allowed(score_TE, passes_TE, self.rows_per_token)
        return self.chosen(scores, score_TE, chosen_TK, None)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """The scores of the given experts divided by their sum.

        An unused row, whose expert is E, has the weight 0.
        """
        none_TK = expert_TK == self.num_experts
        weight_TK = scores.probs_TE.gather(1, expert_TK.masked_fill(none_TK, 0))
        weight_TK = weight_TK.masked_fill(none_TK, 0.0)
        return weight_TK / _above_zero(weight_TK.sum(-1, keepdim=True))


def _kept(taken: Taken, like_TE: Tensor) -> Tensor:
    """kept_TE: M_batchwise, which is True where an expert took a token."""
    num_tokens, num_experts = like_TE.shape
    # Unused rows have the expert number E, which is an additional last column.
    kept = torch.zeros(num_tokens, num_experts + 1, dtype=torch.bool, device=like_TE.device)
    kept[taken.token_N, taken.expert_N] = True
    return kept[:, :-1]


def _over_sum_of_token(weight_N: Tensor, token_N: Tensor, num_tokens: int) -> Tensor:
    sum_T = weight_N.new_zeros(num_tokens).index_add(0, token_N, weight_N)
    return weight_N / _above_zero(sum_T)[token_N]


def _above_zero(total: Tensor) -> Tensor:
    """`total`, or the smallest positive number if that is larger, so that 0/0 becomes 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
