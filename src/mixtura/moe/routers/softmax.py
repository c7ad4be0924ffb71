"""Softmax routers: those of Mixtral, OLMoE, gpt-oss and Switch.

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
    """Softmax over all experts, then top-k, with weights renormalised (Mixtral) or not (OLMoE)."""

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["softmax_topk"] = "softmax_topk"
    renormalise: bool = True
    """whether a token's weights are divided by their sum"""
    choosing_bias: bool = False
    """whether experts are chosen by their probability plus a choosing bias, which is updated after
    each step"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.kind, "set renormalise=false or top_k above 1")


@register_router(SoftmaxTopKConfig)
class SoftmaxTopK(LinearRouter):
    """p = softmax(W x); the weights are the k largest p (OLMoE), or these divided by their sum
    (Mixtral).

    With the division, which is the default, the weights are Mixtral's Softmax(TopK(W x))
    (arXiv 2401.04088), and they sum to 1. Without the division, even probabilities give weights of
    1/E, which make the layer's output small. A choosing bias affects only which experts are chosen,
    and changes by `balance.bias_rate` after each optimizer step.

    Cost: each token is multiplied with the gate's E rows and computed by k experts. Choose it where
    nothing favours another router; Mixtral and Qwen3-MoE have it with `renormalise`, and OLMoE
    without. For one expert a token choose `switch`. Where a balance loss costs quality choose
    `sigmoid_topk`, which balances by a bias.
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
            # This equals p divided by the sum of the chosen p, and is never 0/0.
            return scores.logits_TE.gather(1, expert_TK).softmax(-1)
        weight_TK = scores.score_TE.gather(1, expert_TK)
        # This division gives the same bits as in transformers. A bias may choose experts that all
        # have p = 0, so the sum is clamped.
        return weight_TK / weight_TK.sum(-1, keepdim=True).clamp(min=1e-12)


class TopKSoftmaxConfig(RouterSpec):
    """Top-k of the logits, then softmax over these k (gpt-oss, Granite; Shazeer 2017, eq. 3)."""

    takes_gate_bias: ClassVar[bool] = True
    has_one_gate: ClassVar[bool] = True
    kind: Literal["topk_softmax"] = "topk_softmax"
    choosing_bias: bool = False
    """whether experts are chosen by their logit plus a choosing bias, which is updated after each
    step"""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        refuse_single_renormalised(top_k, self.kind, "choose kind=softmax_topk or kind=switch")


@register_router(TopKSoftmaxConfig)
class TopKSoftmax(LinearRouter):
    """The k largest logits of W x choose the experts; the softmax over these k gives the weights.

    This is the gate of gpt-oss and Granite. It is also the gate of Shazeer 2017 without noise
    (arXiv 1701.06538, eq. 3). It gives the same experts and weights as `softmax_topk` with
    renormalised weights. The two differ only under `choosing_bias`: here the bias is added to
    logits, whose size is not bounded, and in `softmax_topk` to probabilities.

    Cost: each token is multiplied with the gate's E rows and computed by k experts. Choose it to
    reproduce a model that has this gate; otherwise choose `softmax_topk`, whose weights can also be
    left undivided.
    """

    config: TopKSoftmaxConfig

    def __init__(self, config: TopKSoftmaxConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity, choosing_bias=config.choosing_bias)

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK).softmax(-1)


class SwitchConfig(RouterSpec):
    """Switch: one expert a token, whose weight is its probability.

    In training the gate's input is multiplied by noise from U(1 - jitter, 1 + jitter).
    """

    has_one_gate: ClassVar[bool] = True
    kind: Literal["switch"] = "switch"
    jitter: float = Field(default=0.01, ge=0, lt=1)
    """the largest relative noise on each of the gate's inputs in training; 0 for no noise"""

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 1:
            raise ValueError(
                f"top_k={top_k} under router kind=switch, which takes one expert a token; "
                "set top_k=1, or kind=softmax_topk for more"
            )


@register_router(SwitchConfig)
class Switch(LinearRouter):
    """y = p_i(x) E_i(x), i = argmax p, p = softmax(W x) (arXiv 2101.03961, eq. 1 and 2).

    The task's gradient reaches the gate through the weight p_i. In training each number of the
    gate's input is multiplied by a sample of U(1 - jitter, 1 + jitter); the expert's input has no
    noise. The paper's capacity is `capacity: {policy: drop, factor: 1.25, scope: group}`, and the
    paper uses factors from 1.0 to 2.0.

    Cost: each token is multiplied with the gate's E rows and computed by one expert. Choose it
    where each token should be computed by a single expert; for more experts a token choose
    `softmax_topk`.
    """

    config: SwitchConfig

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        # Only the gate's input gets noise; the experts read the input without noise.
        jitter = self.config.jitter if self.training else 0.0
        return super().scores(jittered(x_TD, jitter), bank_R)

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.score_TE.gather(1, expert_TK)


def jittered(x_TD: Tensor, jitter: float) -> Tensor:
    """x times samples of U(1 - jitter, 1 + jitter), in fp32 or float64; x itself if jitter is 0."""
    if jitter == 0:
        return x_TD
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    noise_TD = torch.empty_like(x_TD, dtype=dtype).uniform_(1 - jitter, 1 + jitter)
    return x_TD.to(dtype) * noise_TD
