"""Finds the score function of a transformers router.

A score function computes scores from logits. The combine weights of a token are proportional to the
scores of the experts that it chose. T tokens, E experts, K experts per token.
"""

from collections.abc import Callable, Mapping
from math import isnan
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.errors import ConfigError

ScoreName = Literal["softmax", "sigmoid", "sqrt_softplus", "probabilities"]

SCORES: Mapping[ScoreName, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TE: logits_TE.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits_TE: F.softplus(logits_TE).sqrt(),
    # For routers whose `logits` are already the result of a softmax.
    "probabilities": lambda logits_TE: logits_TE,
}
"""score functions, from logits_TE to score_TE; a token's probabilities are its scores divided by
their sum"""

# The score functions of routers for which `score_behind` finds none: their weights are sampled, or
# scaled for each expert, and so are not proportional to any scores.
KNOWN: Mapping[str, ScoreName] = {
    "PhimoeTopKRouter": "softmax",
    "Gemma4TextRouter": "probabilities",
    "DiffusionGemmaTextRouter": "probabilities",
}

# A score function with a larger deviation (see `_misfit`) is refused. For the right function,
# rounding causes a deviation of 0.003 in bf16 and of 1e-7 in fp32.
TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.02


def probabilities(name: ScoreName, logits_TE: Tensor) -> Tensor:
    """probs_TE in fp32; the probabilities of each token sum to 1."""
    score_TE = SCORES[name](logits_TE.float())
    # The epsilon, which is DeepSeek-V3's, avoids 0 / 0 for a token whose scores are all 0.
    return score_TE if name == "softmax" else score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20)


def score_behind(name: str, logits_TE: Tensor, chosen_TK: Tensor, weight_TK: Tensor) -> ScoreName:
    """The score function to whose scores each token's weights are proportional.

    With one expert per token, the factor between weight and score must be the same for all tokens.
    Raises ConfigError, which gives the router's `name`, if no score function fits, or more than
    one.
    """
    misfits: dict[ScoreName, float] = {
        score: _misfit(SCORES[score](logits_TE.detach().double()), chosen_TK, weight_TK.detach())
        for score in SCORES
        if score != "probabilities"
    }
    best, next_best, *_ = sorted(misfits, key=lambda score: misfits[score])
    if misfits[best] > TOLERANCE.get(weight_TK.dtype, HALF_TOLERANCE):
        raise ConfigError(
            f"router {name}: its weights follow none of {', '.join(misfits)} of its logits, so its "
            "probabilities are unknown; name one, as in scores='softmax'"
        )
    if misfits[next_best] <= 2 * misfits[best] + 1e-6:
        raise ConfigError(
            f"router {name}: its weights follow {best} and {next_best} of its logits alike on this "
            f"batch, as for equal logits; name the one it uses, as in scores='{best}'"
        )
    return best


def _misfit(score_TE: Tensor, chosen_TK: Tensor, weight_TK: Tensor) -> float:
    """The mean relative deviation of the ratio weight / score from its mean; 0 for a perfect fit.

    The mean of the ratio is over a token's experts or, with one expert per token, over all tokens.
    """
    if weight_TK.shape[1] == 1 and bool((weight_TK == weight_TK[0]).all()):
        # A router that divides its single weight by the sum of weights always returns 1, which is
        # proportional to no score.
        return float("inf")
    ratio_TK = weight_TK.double() / score_TE.gather(1, chosen_TK)
    mean = ratio_TK.mean(1, keepdim=True) if ratio_TK.shape[1] > 1 else ratio_TK.mean()
    misfit = (ratio_TK / mean - 1).abs().mean().item()
    return float("inf") if isnan(misfit) else misfit
