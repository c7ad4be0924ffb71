"""A gate that samples one expert a token and learns from the token's cross-entropy.

T tokens, E experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixtura.moe.capacity import Capacity, Policy
from mixtura.moe.routers.router import LossName, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores, linear
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import mean_over_tokens
from mixtura.shapes.ledger import Weight


class ReinforceConfig(RouterSpec):
    """RL-R: one expert a token is sampled from a softmax policy, which REINFORCE trains."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"policy": 0.01, "balance": 0.01, "z": 0.001, "importance": 0.0}
    )
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType(
        {
            "reroute": "the policy would be rewarded for an expert that it did not "
            "choose; choose policy=drop, policy=wave or policy=dropless"
        }
    )
    kind: Literal["reinforce"] = "reinforce"
    baseline: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """the weight of the baseline's squared error in the policy's loss"""
    entropy: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """the weight of the entropy in the policy's loss; a larger weight makes the policy try more
    experts"""

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 1:
            raise ValueError(
                f"top_k={top_k} under router kind=reinforce, which tries one expert a token; "
                "set top_k=1, or kind=softmax_topk for more"
            )

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        yield from super().weights(shape, prefix)
        # The baseline is used only in training, so none of its weights count as active.
        yield Weight(f"{prefix}baseline_weight", (1, shape.width), "router", Fraction(0))
        yield Weight(f"{prefix}baseline_bias", (1,), "router", Fraction(0))


@register_router(ReinforceConfig)
class Reinforce(LinearRouter):
    """pi = softmax(W x); e is sampled from pi in training, argmax pi in evaluation; y = E_e(x).

    This is RL-R of Clark et al. 2022 (arXiv 2202.01169). The gate is trained by REINFORCE with a
    learned baseline (see `reinforce_loss`). The weight of the expert's output is 1, so it passes no
    gradient to the gate. That the weight is 1 is our reading: the secondary source that we used
    gives no details. The reward of a token is the batch's mean cross-entropy minus the token's own,
    so that the baseline need not follow the falling loss. The trainer passes the cross-entropies to
    `mixtura.moe.late_losses`, and a training loop of your own must do so too. The baseline is
    linear in x and passes no gradient to x. The reward contains only the loss of the token's own
    prediction: effects on later tokens through attention are not counted. The routing's terms are
    `log_prob_T`, `baseline_T` and `entropy_T`. Because a policy tends to settle on a few experts,
    Switch's balance loss and the z-loss are added; the policy's loss has the same weight as the
    balance loss.

    The router reads no later tokens: a choice depends only on the token itself, and the reward is
    computed after the forward pass.

    Cost: each token is multiplied with the gate's E rows and computed by one expert. Training adds
    one row, for the baseline, and needs the cross-entropy of each token. Choose it to study routing
    as a decision problem; a softmax gate learns faster, because its combine weight passes a
    gradient to the gate.
    """

    config: ReinforceConfig

    def __init__(self, config: ReinforceConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        self.baseline_weight = nn.Parameter(torch.zeros(1, shape.width))
        self.baseline_bias = nn.Parameter(torch.zeros(1))

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def rank(self, scores: Scores, bank_R: Tensor | None) -> Tensor:
        """The logits; in training the logits plus Gumbel noise.

        The expert with the largest noisy logit is a sample from the policy.
        """
        ranking_TE = super().rank(scores, bank_R)
        if not self.training:
            return ranking_TE
        return ranking_TE - torch.empty_like(ranking_TE).exponential_().log()

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return torch.ones_like(expert_TK, dtype=scores.logits_TE.dtype)

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        choice = super().choose(x_TD, valid_R, bank_R)
        if not self.training:
            return choice
        assert choice.logits_TE is not None, "a linear gate has logits"
        log_prob_TE = choice.logits_TE.log_softmax(-1)
        baseline_T1 = linear(x_TD.detach(), self.baseline_weight) + self.baseline_bias
        terms = {
            "log_prob_T": log_prob_TE.gather(1, choice.chosen_TK).squeeze(1),
            "baseline_T": baseline_T1.squeeze(1),
            "entropy_T": -(log_prob_TE.exp() * log_prob_TE).sum(-1),
        }
        return replace(choice, terms=terms)

    def late_loss(self, routing: Routing, nats_T: Tensor) -> Tensor:
        """The policy's loss; a token's reward is the mean of all cross-entropies minus its own."""
        reward_T = mean_over_tokens(nats_T, routing.valid_T) - nats_T
        return reinforce_loss(routing, reward_T, self.config.baseline, self.config.entropy)


def reinforce_loss(
    routing: Routing, reward_T: Tensor, baseline: float = 1.0, entropy: float = 0.01
) -> Tensor:
    """mean_t -(r_t - b_t) log pi(e_t) + baseline (r_t - b_t)^2 - entropy H(pi_t), without padding.

    This is REINFORCE (Williams 1992) with a learned baseline. The mean over tokens t is taken of
    the whole expression. r_t is the token's reward, and b_t its expected reward, `baseline_T` of
    the routing's terms. log pi(e_t) is `log_prob_T`, and the policy's entropy H(pi_t) is
    `entropy_T`. In the first summand r_t - b_t is a constant, so only the square trains the
    baseline. The arguments `baseline` and `entropy` are weights.
    """
    terms = routing.terms
    surprise_T = reward_T.detach() - terms["baseline_T"]
    loss_T = (
        baseline * surprise_T.square()
        - surprise_T.detach() * terms["log_prob_T"]
        - entropy * terms["entropy_T"]
    )
    return mean_over_tokens(loss_T, routing.valid_T)
