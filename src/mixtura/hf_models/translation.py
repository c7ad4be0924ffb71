"""From what a router of transformers gave to Mixtura's `Routing`.

T tokens, E experts, K experts per token, N = T*K routed rows.
"""

from typing import Literal

import torch
from torch import Tensor

from mixtura.hf_models.routers import Decision, FoundRouter
from mixtura.hf_models.scores import KNOWN, ScoreName, probabilities, score_behind
from mixtura.moe.routing import Routing, token_rows


class Translation:
    """It learns from a router's first call which score its weights follow."""

    def __init__(self, scores: Literal["auto"] | ScoreName = "auto") -> None:
        self._named: Literal["auto"] | ScoreName = scores
        self._scores: dict[FoundRouter, ScoreName] = {}

    def __call__(
        self,
        router: FoundRouter,
        decision: Decision,
        num_sequences: int,
        valid_T: Tensor | None,
    ) -> Routing:
        """Raises ConfigError where no score is known for the router (see `score_behind`)."""
        chosen_TK = decision.chosen_TK
        tokens, top_k = chosen_TK.shape
        token_N, choice_N = token_rows(tokens, top_k, chosen_TK.device)
        logits_TE, probs_TE, num_experts = self._beliefs(router, decision)
        valid_T = None if valid_T is None else valid_T.to(chosen_TK.device)
        unused_TK = torch.zeros_like(chosen_TK, dtype=torch.bool)
        if decision.lost_TK is not None:
            unused_TK = unused_TK | decision.lost_TK
        if valid_T is not None:
            unused_TK = unused_TK | ~valid_T[:, None]
        return Routing(
            token_N=token_N,
            choice_N=choice_N,
            chosen_N=chosen_TK.flatten(),
            expert_N=chosen_TK.masked_fill(unused_TK, num_experts).flatten(),
            weight_N=decision.weight_TK.masked_fill(unused_TK, 0).flatten(),
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            valid_T=valid_T,
            num_experts=num_experts,
            num_sequences=num_sequences,
            top_k=top_k,
        )

    def _beliefs(
        self, router: FoundRouter, decision: Decision
    ) -> tuple[Tensor | None, Tensor | None, int]:
        """logits_TE, probs_TE and E."""
        logits_TE = decision.logits_TE
        if logits_TE is None:
            return None, None, router.number("num_experts")
        score = self._score(router, logits_TE, decision)
        probs_TE = probabilities(score, logits_TE)
        return None if score == "probabilities" else logits_TE, probs_TE, logits_TE.shape[1]

    def _score(self, router: FoundRouter, logits_TE: Tensor, decision: Decision) -> ScoreName:
        if self._named != "auto":
            return self._named
        if router.kind in KNOWN:
            return KNOWN[router.kind]
        if router not in self._scores:
            self._scores[router] = score_behind(
                router.name, logits_TE, decision.chosen_TK, decision.weight_TK
            )
        return self._scores[router]
