"""DeepSeek-V3's sigmoid gate, with a bias that affects only the choice, and without groups.

T tokens, E experts, K experts per token.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.router import (
    RouterShape,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.token_choice import LinearRouter, Scores


class SigmoidTopKConfig(RouterSpec):
    """s = sigmoid(W x); the k largest s + bias; weights s over their sum, times `scale`."""

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["sigmoid_topk"] = "sigmoid_topk"
    renormalise: bool = True
    """whether a token's weights are divided by their sum"""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """factor of all weights"""
    choosing_bias: bool = True
    """whether a bias, updated after each step, is added to the scores for the choice"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(SigmoidTopKConfig)
class SigmoidTopK(LinearRouter):
    """g' = s where s + b is among the k largest; g = g' / sum g' (arXiv 2412.19437, eq. 12-16).

    probs_TE is s over its sum over all experts, as in DeepSeek-V3's sequence-wise loss. Each expert
    is scored by itself, so one score may rise without lowering others. The bias b rises after each
    optimizer step by `balance.bias_rate` for an expert under the mean load, and falls by as much
    for one above it.

    Cost: one product of E rows a token, and k experts. Choose it for many experts, and where a
    balance loss costs quality: under `balance: {loss: 0}` the bias balances alone. Not for experts
    on several nodes, where `deepseek_v3` sends a token to fewer of them.
    """

    config: SigmoidTopKConfig

    def __init__(self, config: SigmoidTopKConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity, choosing_bias=config.choosing_bias)

    def score(self, logits_TE: Tensor) -> Scores:
        score_TE = logits_TE.sigmoid()
        # The 1e-20 of transformers' DeepSeek-V3 keeps a row of zeros finite.
        return Scores(logits_TE, score_TE, score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        weight_TK = scores.score_TE.gather(1, expert_TK)
        if self.config.renormalise:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return weight_TK * self.config.scale
