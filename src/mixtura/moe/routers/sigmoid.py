"""DeepSeek-V3's sigmoid gate with a choosing bias, but without groups of experts.

T tokens, E experts, K experts per token.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mixtura.kernels.row_linear import row_sigmoid
from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.router import (
    RouterShape,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.token_choice import LinearRouter, Scores


class SigmoidTopKConfig(RouterSpec):
    """Sigmoid scores; the experts with the k largest sums of score and bias are chosen.

    The weights are the scores divided by the sum of the chosen scores, times `scale`.
    """

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["sigmoid_topk"] = "sigmoid_topk"
    renormalise: bool = True
    """whether a token's weights are divided by their sum"""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """the factor by which all weights are multiplied"""
    choosing_bias: bool = True
    """whether experts are chosen by their score plus a choosing bias, which is updated after each
    step"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(SigmoidTopKConfig)
class SigmoidTopK(LinearRouter):
    """s = sigmoid(W x); g'_i = s_i if s_i + b_i is among the k largest, else 0; g = g' / sum g'
    (arXiv 2412.19437, eq. 12-16).

    The balance loss uses the probabilities s_i / sum_j s_j over all experts j, as in DeepSeek-V3's
    sequence-wise loss. Each expert is scored separately, so one score can rise while the other
    scores stay the same. After each optimizer step the bias b_i rises by `balance.bias_rate` if
    expert i's load is below the mean, and falls by the same amount if the load is above the mean.

    Cost: each token is multiplied with the gate's E rows and computed by k experts. Choose it for
    many experts, and where a balance loss costs quality: under `balance: {loss: 0}` only the bias
    balances the load. For experts on several nodes choose `deepseek_v3`, which sends a token to
    fewer nodes.
    """

    config: SigmoidTopKConfig
    scores_in_fp32: bool = False
    """whether the sigmoid of a rounded logit is not rounded, as in transformers' MiniMax M2"""

    def __init__(self, config: SigmoidTopKConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity, choosing_bias=config.choosing_bias)

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        scores = super().scores(x_TD, bank_R)
        if self.scores_in_fp32 or not scores.rounded:
            return scores
        # transformers rounds the sigmoid of a rounded logit too, and computes weights in its dtype
        # (LFM2).
        return replace(scores, score_TE=scores.score_TE.to(x_TD.dtype))

    def score(self, logits_TE: Tensor) -> Scores:
        score_TE = row_sigmoid(logits_TE)
        # If all scores of a row are 0, the 1e-20 (as in transformers' DeepSeek-V3) avoids 0/0.
        return Scores(logits_TE, score_TE, score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        weight_TK = scores.score_TE.gather(1, expert_TK)
        if self.config.renormalise:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return (weight_TK * self.config.scale).to(scores.logits_TE.dtype)
