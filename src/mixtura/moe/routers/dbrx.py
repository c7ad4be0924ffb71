"""DBRX's gate: the weights of a token's experts are divided by their p-norm.

T tokens, D model width, E experts, K experts per token.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.moe.routers.router import (
    LossName,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.softmax import jittered
from mixtura.moe.routers.token_choice import LinearRouter, Scores


class DbrxConfig(RouterSpec):
    """DBRX: softmax over all experts, then top-k.

    The k probabilities are divided by their p-norm; under `norm: null` they are not divided.
    """

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.05, "z": 0.0})
    has_one_gate: ClassVar[bool] = True
    kind: Literal["dbrx"] = "dbrx"
    norm: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    """the p of the p-norm by which the chosen probabilities are divided; null for no division"""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """the largest relative noise on each of the gate's inputs in training; 0 for no noise"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.norm is not None:
            refuse_single_renormalised(top_k, self.kind, "set norm=null or top_k above 1")


@register_router(DbrxConfig)
class Dbrx(LinearRouter):
    """p = softmax(W x); weight p_i / (sum over the k chosen of p_j^n)^(1/n), n = `norm`.

    This is the router of DBRX, which has no paper. Its released config has 16 experts, 4 experts a
    token, moe_normalize_expert_weights 1, moe_jitter_eps 0 and moe_loss_weight 0.05. Under n = 1
    the weights sum to 1, as in Mixtral; under n = 2 the squares of the weights sum to 1. In
    training each number of the router's input is multiplied by a sample of U(1 - jitter, 1 +
    jitter); the experts' input has no noise. DBRX has many small experts: 4 of 16 experts have 65
    times as many combinations as 2 of 8.

    Cost: each token is multiplied with the gate's E rows and computed by k experts. Choose it to
    reproduce DBRX, or for weights of another norm: if a token has many experts, weights that sum to
    1 are small. With its default fields it differs from `softmax_topk` only in the default weights
    of the losses.
    """

    config: DbrxConfig

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        jitter = self.config.jitter if self.training else 0.0
        return super().scores(jittered(x_TD, jitter), bank_R)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        norm = self.config.norm
        if norm is None:
            return scores.score_TE.gather(1, expert_TK)
        # The softmax over the chosen logits has the same ratios as p, and does not underflow to
        # 0/0.
        share_TK = scores.logits_TE.gather(1, expert_TK).softmax(-1)
        return share_TK / torch.linalg.vector_norm(share_TK, ord=norm, dim=-1, keepdim=True)
