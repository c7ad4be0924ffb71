"""Translates the outputs of a transformers router to Mixtura's `Routing`.

T tokens, E experts, K experts per token.
"""

from typing import Literal

from torch import Tensor

from mixtura.hf_models.routers import Decision, FoundRouter
from mixtura.hf_models.scores import KNOWN, ScoreName, probabilities, score_behind
from mixtura.moe.routing import Routing


class Translation:
    """Translates routers' outputs to `Routing`s.

    With `auto`, a router's score function is found from the outputs of the router's first call.
    """

    def __init__(self, scores: Literal["auto"] | ScoreName = "auto") -> None:
        self._named_score: Literal["auto"] | ScoreName = scores
        self._scores: dict[FoundRouter, ScoreName] = {}

    def __call__(
        self,
        router: FoundRouter,
        decision: Decision,
        num_sequences: int,
        valid_T: Tensor | None,
    ) -> Routing:
        """Return the decision as a `Routing`; `valid_T` is False for padding.

        Raises ConfigError if the router's score function cannot be found (see `score_behind`).
        """
        chosen_TK = decision.chosen_TK
        logits_TE, probs_TE, num_experts = self._probabilities(router, decision)
        return Routing.of_choices(
            chosen_TK,
            decision.weight_TK,
            num_experts,
            dropped_TK=decision.dropped_TK,
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            valid_T=None if valid_T is None else valid_T.to(chosen_TK.device),
            num_sequences=num_sequences,
        )

    def _probabilities(
        self, router: FoundRouter, decision: Decision
    ) -> tuple[Tensor | None, Tensor | None, int]:
        """Return logits_TE, probs_TE and E."""
        logits_TE = decision.logits_TE
        if logits_TE is None:
            return None, None, router.number("num_experts")
        score = self._score(router, logits_TE, decision)
        probs_TE = probabilities(score, logits_TE)
        return None if score == "probabilities" else logits_TE, probs_TE, logits_TE.shape[1]

    def _score(self, router: FoundRouter, logits_TE: Tensor, decision: Decision) -> ScoreName:
        if self._named_score != "auto":
            return self._named_score
        if router.kind in KNOWN:
            return KNOWN[router.kind]
        if router not in self._scores:
            self._scores[router] = score_behind(
                router.name, logits_TE, decision.chosen_TK, decision.weight_TK
            )
        return self._scores[router]
