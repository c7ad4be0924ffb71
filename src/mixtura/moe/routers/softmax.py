"""Softmax routers: Mixtral, OLMoE, gpt-oss and Switch.

T tokens, D model width, E experts, K experts per token.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.config import Config
from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.token_choice import (
    Scores,
    TokenChoiceRouter,
    refuse_single_renormalised,
)
from mixtura.moe.routing import Routing


class SoftmaxTopKConfig(Config):
    """Softmax over all experts, then top-k; weights renormalised (Mixtral) or not (OLMoE)."""

    kind: Literal["softmax_topk"] = "softmax_topk"
    renormalise: bool = True
    choosing_bias: bool = False

    def check(self, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")

    def build(self, width: int, num_experts: int, top_k: int, capacity: Capacity) -> "SoftmaxTopK":
        return SoftmaxTopK(self, width, num_experts, top_k, capacity)


class SoftmaxTopK(TokenChoiceRouter):
    """p = softmax(W x); the k largest, as they are (OLMoE) or over their sum (Mixtral)."""

    def __init__(
        self,
        config: SoftmaxTopKConfig,
        width: int,
        num_experts: int,
        top_k: int,
        capacity: Capacity,
    ) -> None:
        super().__init__(width, num_experts, top_k, capacity, choosing_bias=config.choosing_bias)
        self.config = config

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        if self.config.renormalise:
            # Equal to p over the sum of the chosen p, and never 0/0.
            return scores.logits_TE.gather(1, expert_TK).softmax(-1)
        return scores.score_TE.gather(1, expert_TK)


class TopKSoftmaxConfig(Config):
    """Top-k over logits, then softmax over the k (gpt-oss, Granite; Shazeer 2017, eq. 3)."""

    kind: Literal["topk_softmax"] = "topk_softmax"
    choosing_bias: bool = False

    def check(self, top_k: int) -> None:
        refuse_single_renormalised(top_k, self.kind, "choose kind=softmax_topk or kind=switch")

    def build(self, width: int, num_experts: int, top_k: int, capacity: Capacity) -> "TopKSoftmax":
        return TopKSoftmax(width, num_experts, top_k, capacity, choosing_bias=self.choosing_bias)


class TopKSoftmax(TokenChoiceRouter):
    """The k largest logits, softmax over them. Ranks by logit, so a bias adds to logits."""

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK).softmax(-1)


class SwitchConfig(Config):
    """Switch: top-1, weight p, the input jittered by U(1 - jitter, 1 + jitter) in training."""

    kind: Literal["switch"] = "switch"
    jitter: float = Field(default=0.01, ge=0, lt=1)

    def check(self, top_k: int) -> None:
        if top_k != 1:
            raise ValueError(
                f"top_k={top_k} under router kind=switch, which takes one expert a token; "
                "set top_k=1, or kind=softmax_topk for more"
            )

    def build(self, width: int, num_experts: int, top_k: int, capacity: Capacity) -> "Switch":
        return Switch(self, width, num_experts, top_k, capacity)


class Switch(TokenChoiceRouter):
    """y = p_i(x) E_i(x), i = argmax p, p = softmax(W x) (arXiv 2101.03961, eq. 1 and 2)."""

    def __init__(
        self, config: SwitchConfig, width: int, num_experts: int, top_k: int, capacity: Capacity
    ) -> None:
        super().__init__(width, num_experts, top_k, capacity)
        self.config = config

    def forward(
        self,
        x_TD: Tensor,
        valid_T: Tensor | None = None,
        num_sequences: int = 1,
        capacity: Capacity | None = None,
    ) -> Routing:
        jitter = self.config.jitter
        if self.training and jitter > 0:
            # Only the router sees the jittered input; the experts get the token as it is.
            dtype = torch.promote_types(x_TD.dtype, torch.float32)
            noise_TD = torch.empty_like(x_TD, dtype=dtype).uniform_(1 - jitter, 1 + jitter)
            x_TD = x_TD.to(dtype) * noise_TD
        return super().forward(x_TD, valid_T, num_sequences, capacity)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK)
