"""Softmax routers: Mixtral, OLMoE, gpt-oss, Switch and DBRX.

T tokens, D model width, E experts, K experts per token.
"""

from typing import ClassVar, Literal

import torch
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


class SoftmaxTopKConfig(RouterSpec):
    """Softmax over all experts, then top-k; weights renormalised (Mixtral) or not (OLMoE)."""

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["softmax_topk"] = "softmax_topk"
    renormalise: bool = True
    """whether a token's weights are divided by their sum"""
    choosing_bias: bool = False
    """whether a bias, updated after each step, is added to the probabilities for the choice"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(SoftmaxTopKConfig)
class SoftmaxTopK(LinearRouter):
    """p = softmax(W x); the k largest p (OLMoE), or each over their sum (Mixtral).

    Over their sum, the default, the weights are Mixtral's Softmax(TopK(W x)) (arXiv 2401.04088) and
    sum to 1 for any probabilities. Without the division, even probabilities make the layer's output
    small. `choosing_bias` changes by `balance.bias_rate` after each step, and affects only the
    choice.

    Cost: one product of E rows a token, and k experts. Choose it where nothing favours another
    router: Mixtral and Qwen3-MoE renormalise, OLMoE does not. Not for one expert a token, for which
    there is `switch`, nor where a balance loss costs quality: `sigmoid_topk` balances by a bias.
    """

    config: SoftmaxTopKConfig

    def __init__(self, config: SoftmaxTopKConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity, choosing_bias=config.choosing_bias)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        if not self.config.renormalise:
            return scores.score_TE.gather(1, expert_TK)
        if not scores.rounded:
            # Equal to p over the sum of the chosen p, and never 0/0.
            return scores.logits_TE.gather(1, expert_TK).softmax(-1)
        weight_TK = scores.score_TE.gather(1, expert_TK)
        # transformers' division, to the last bit; a bias may choose experts that all have p = 0.
        return weight_TK / weight_TK.sum(-1, keepdim=True).clamp(min=1e-12)


class TopKSoftmaxConfig(RouterSpec):
    """Top-k over logits, then softmax over the k (gpt-oss, Granite; Shazeer 2017, eq. 3)."""

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["topk_softmax"] = "topk_softmax"
    choosing_bias: bool = False
    """whether a bias, updated after each step, is added to the logits for the choice"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        refuse_single_renormalised(top_k, self.kind, "choose kind=softmax_topk or kind=switch")


@register_router(TopKSoftmaxConfig)
class TopKSoftmax(LinearRouter):
    """The k largest logits, softmax over them. Ranks by logit, so a bias adds to logits.

    The gate of gpt-oss and Granite, and that of Shazeer 2017 without its noise (arXiv 1701.06538,
    eq. 3). It gives the experts and the weights of a renormalising `softmax_topk`. The two differ
    under `choosing_bias`, which here adds to logits of any size, and there to probabilities.

    Cost: one product of E rows a token, and k experts. Choose it to repeat a model that has this
    gate; otherwise `softmax_topk`, which can also leave its weights undivided.
    """

    config: TopKSoftmaxConfig

    def __init__(self, config: TopKSoftmaxConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity, choosing_bias=config.choosing_bias)

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK).softmax(-1)


class SwitchConfig(RouterSpec):
    """Switch: top-1, weight p, the input jittered by U(1 - jitter, 1 + jitter) in training."""

    has_one_gate: ClassVar[bool] = True
    kind: Literal["switch"] = "switch"
    jitter: float = Field(default=0.01, ge=0, lt=1)
    """largest relative noise on each of the gate's inputs in training; 0: no noise"""

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 1:
            raise ValueError(
                f"top_k={top_k} under router kind=switch, which takes one expert a token; "
                "set top_k=1, or kind=softmax_topk for more"
            )


@register_router(SwitchConfig)
class Switch(LinearRouter):
    """y = p_i(x) E_i(x), i = argmax p, p = softmax(W x) (arXiv 2101.03961, eq. 1 and 2).

    The weight is p itself, through which the task's gradient reaches the gate. In training the
    gate's input is multiplied by U(1 - jitter, 1 + jitter); the expert's input has no noise. The
    paper's capacity is `capacity: {policy: drop, factor: 1.25, scope: group}`, with factors from
    1.0 to 2.0.

    Cost: one product of E rows a token, and one expert. Choose it where a token should cost one
    expert and be sent to one place; for more experts a token there is `softmax_topk`.
    """

    config: SwitchConfig

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        # Only the router's input is jittered, not the experts'.
        jitter = self.config.jitter if self.training else 0.0
        return super().scores(jittered(x_TD, jitter), bank_R)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK)


def jittered(x_TD: Tensor, jitter: float) -> Tensor:
    """x times U(1 - jitter, 1 + jitter), in fp32 or float64; x itself for a jitter of 0."""
    if jitter == 0:
        return x_TD
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    noise_TD = torch.empty_like(x_TD, dtype=dtype).uniform_(1 - jitter, 1 + jitter)
    return x_TD.to(dtype) * noise_TD
