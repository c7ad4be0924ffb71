"""GShard's gate: two experts a token; in training the second expert is used at random.

T tokens, E experts, K = 2 experts per token.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mixtura.moe.routers.router import CountedChoices, LossName, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores


class GShardConfig(RouterSpec):
    """GShard: softmax over all experts, and two experts a token.

    In training the second expert is abandoned at random, the more often the smaller its weight is.
    """

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.01, "z": 0.0})
    loss_choices: ClassVar[CountedChoices] = "first"
    has_one_gate: ClassVar[bool] = True
    kind: Literal["gshard"] = "gshard"

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 2:
            raise ValueError(
                f"top_k={top_k} under router kind=gshard, which takes two experts a token; set "
                "top_k=2, kind=switch for one expert or kind=softmax_topk for more"
            )


@register_router(GShardConfig)
class GShard(LinearRouter):
    """g = softmax(W x); the two largest g divided by their sum are the weights g1 and g2; in
    training the second expert is used with probability 2 g2.

    This is the gate of GShard (arXiv 2006.16668, algorithm 1). In training a second choice is
    abandoned unless 2 g2 > U(0, 1). An abandoned choice takes room at its expert, and g1 is not
    raised to 1. In evaluation the second expert is always used. The paper's capacity is C = 2 S / E
    rows for S tokens, and all first choices come before second choices. This is
    `capacity: {policy: drop, factor: 1.0, scope: group}`.

    The balance loss counts only first choices: `balance.choices` is `first` by default. The paper's
    loss, l_aux = (1/E) sum_e (c_e / S) m_e, is our balance loss divided by E^2. The paper's
    algorithm gives no weight for this loss; the default weight, 0.01 times our balance loss, is
    that of Switch.

    Cost: each token is multiplied with the gate's E rows. It is computed by 1 + 2 g2 experts on
    average in training, and by 2 in evaluation. Choose it to reproduce GShard; for a plain top-2
    layer choose `softmax_topk`, which has the same weights without the randomness.
    """

    def score(self, logits_TE: Tensor) -> Scores:
        probs_TE = logits_TE.softmax(-1)
        return Scores(logits_TE, probs_TE, probs_TE)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        # This equals g divided by the sum of the two chosen g, and is never 0/0.
        return scores.logits_TE.gather(1, expert_TK).softmax(-1)

    def chosen(
        self, scores: Scores, ranking_TE: Tensor, chosen_TK: Tensor, bank_R: Tensor | None
    ) -> Choice:
        choice = super().chosen(scores, ranking_TE, chosen_TK, bank_R)
        if not self.training:
            return choice
        second_T = choice.weight_TK[:, 1].detach()
        random_T = torch.rand(len(second_T), dtype=second_T.dtype, device=second_T.device)
        abandoned_T = 2 * second_T <= random_T
        abandoned_TK = torch.stack([torch.zeros_like(abandoned_T), abandoned_T], dim=1)
        return replace(choice, abandoned_TK=abandoned_TK)
