"""From logits to a token, in the order that transformers has.

1. `logit_bias` is added.
2. The repetition penalty, then the frequency and presence penalties (penalties.py).
3. The temperature divides.
4. top-k, then top-p, then min-p rule tokens out; each looks at what the one before it left.

B sequences, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from mixtura.config import Config
from mixtura.errors import ConfigError, NonFiniteError

# Only for annotations: the functions below need no more than the tensors they are given.
if TYPE_CHECKING:
    from torch import Generator, Tensor

# In how many of the likeliest tokens a nucleus lies, as a rule; to sort them all costs much more.
_FEW = 256


# Logits times the largest stay finite in fp32, or an error would blame the weights.
_LEAST_PENALTY, _MOST_PENALTY = 0.01, 100.0
# OpenAI's own bounds.
_MOST_ADDED, _MOST_BIAS = 2.0, 100.0


MAX_TOKENS = 256
"""tokens of an answer where neither a user nor the model says"""


class Sampling(Config):
    """How the next token is chosen; `temperature=0` takes the likeliest and draws nothing."""

    temperature: float = 0.8
    top_k: int = 0
    """draw from the k likeliest tokens only; 0 for all"""
    top_p: float = 1.0
    """draw from the fewest likeliest tokens whose probabilities reach p; 1 for all"""
    min_p: float = 0.0
    """draw from tokens with at least this share of the likeliest one's probability; 0 for all
    (arXiv 2407.01082)"""
    repetition_penalty: float = 1.0
    """divides the logit of a token that the prompt or the answer holds, or multiplies it where it
    is below 0; 1 for none (CTRL, arXiv 1909.05858, as transformers has it)"""
    frequency_penalty: float = 0.0
    """taken off a logit for each time that the answer has the token (OpenAI)"""
    presence_penalty: float = 0.0
    """taken off a logit once where the answer has the token (OpenAI)"""
    logit_bias: Mapping[int, float] = {}
    """added to the logit of a token, by its number"""
    seed: int = 0

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        # A comparison with NaN is false, so each says what holds.
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be 0 or more; 0 takes the likeliest token"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 or more; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must lie in 0..1; 0 keeps every token")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in 0..2^63-1; choose another")
        return self

    @model_validator(mode="after")
    def _penalties_in_bounds(self) -> Self:
        if not _LEAST_PENALTY <= self.repetition_penalty <= _MOST_PENALTY:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must lie in "
                f"{_LEAST_PENALTY}..{_MOST_PENALTY:g}; 1 is none"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if not abs(value) <= _MOST_ADDED:
                raise ValueError(
                    f"{name}={value} must lie in -{_MOST_ADDED:g}..{_MOST_ADDED:g}; 0 is none"
                )
        for token, bias in self.logit_bias.items():
            if token < 0 or not abs(bias) <= _MOST_BIAS:
                raise ValueError(
                    f"logit_bias of token {token} is {bias}; expected a token from 0 on, and "
                    f"a bias in -{_MOST_BIAS:g}..{_MOST_BIAS:g}"
                )
        return self

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises ConfigError for a bias of a token that the model has not."""
        beyond = [token for token in self.logit_bias if token >= vocabulary]
        if beyond:
            raise ConfigError(
                f"logit_bias of token {beyond[0]}: it must lie in 0..{vocabulary - 1}, the "
                "model's vocabulary"
            )


def sample(logits_BV: "Tensor", sampling: Sampling, generator: "Generator") -> "Tensor":
    """token_B of logits_BV, or a scalar of logits_V, int64.

    A logit of -inf rules its token out. Raises NonFiniteError for NaN, for +inf, and where every
    token is ruled out.
    """
    check_finite(logits_BV)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    return draw(logits_BV, sampling, generator)


def draw(logits_BV: "Tensor", sampling: Sampling, generator: "Generator") -> "Tensor":
    """As `sample` at a temperature above 0, for logits that are known to be finite.

    One number of the generator for each draw: multinomial takes one for each token, which costs
    more than all else.
    """
    summed_BV = probabilities(logits_BV, sampling).cumsum(-1)
    total_B1 = summed_BV[..., -1:]
    aim_B1 = total_B1 * total_B1.new_empty(total_B1.shape).uniform_(generator=generator)
    # Rounding must not lift it to the total, beyond which no token lies.
    aim_B1 = aim_B1.minimum(total_B1.nextafter(total_B1.new_zeros(())))
    return (summed_BV <= aim_B1).sum(-1)


def check_finite(logits_BV: "Tensor") -> None:
    """Raises NonFiniteError for NaN, for +inf, and where every token is ruled out."""
    if not logits_BV.amax(-1).isfinite().all():
        raise NonFiniteError(
            "the logits of the next token are not finite, so no token can be chosen; "
            "the weights hold NaN or infinity: take an earlier checkpoint"
        )


def probabilities(logits_BV: "Tensor", sampling: Sampling) -> "Tensor":
    """What `sample` draws from, in float64; needs a temperature above 0. Rows sum to 1."""
    # The largest becomes 0, so that no temperature, however small, makes inf - inf.
    logits_BV = logits_BV.double()
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        best = logits_BV.topk(sampling.top_k)
        logits_BV = logits_BV.new_full(logits_BV.shape, -math.inf)
        logits_BV = logits_BV.scatter(-1, best.indices, best.values)
    probs_BV = logits_BV.softmax(-1)
    if sampling.top_p < 1:
        probs_BV = _nucleus(probs_BV, sampling.top_p)
    return _not_far_below(probs_BV, sampling.min_p) if sampling.min_p > 0 else probs_BV


def _not_far_below(probs_BV: "Tensor", min_p: float) -> "Tensor":
    """A token stays that has `min_p` of the likeliest one's probability."""
    least_B1 = min_p * probs_BV.amax(-1, keepdim=True)
    kept_BV = probs_BV.masked_fill(probs_BV < least_B1, 0)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _nucleus(probs_BV: "Tensor", top_p: float) -> "Tensor":
    """A token stays while the likelier ones sum to less than top_p (arXiv 1904.09751)."""
    few = min(_FEW, probs_BV.shape[-1])
    kept_BK, token_BK = _kept(probs_BV, probs_BV.topk(few).indices.sort().values, top_p)
    # Where the last of the few is kept, or as likely as one that is, others may have to be too.
    least_B = kept_BK.masked_fill(kept_BK == 0, math.inf).amin(-1)
    if few < probs_BV.shape[-1] and (least_B <= probs_BV.gather(-1, token_BK)[..., -1]).any():
        kept_BK, token_BK = _kept(probs_BV, None, top_p)
    kept_BV = probs_BV.new_zeros(probs_BV.shape).scatter(-1, token_BK, kept_BK)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _kept(probs_BV: "Tensor", among_BK: "Tensor | None", top_p: float) -> "tuple[Tensor, Tensor]":
    """(kept_BK, token_BK), the likeliest first, of equal ones the first; 0 for what goes.

    `among_BK` holds the likeliest tokens, in the order of the vocabulary; None for all.
    """
    of_BK = probs_BV if among_BK is None else probs_BV.gather(-1, among_BK)
    sorted_BK, token_BK = of_BK.sort(dim=-1, descending=True, stable=True)
    reached_BK = sorted_BK.cumsum(-1) >= top_p
    # The token that reaches top_p stays, so each asks whether the one before it has.
    sorted_BK[..., 1:] = sorted_BK[..., 1:].masked_fill(reached_BK[..., :-1], 0)
    return sorted_BK, token_BK if among_BK is None else among_BK.gather(-1, token_BK)
