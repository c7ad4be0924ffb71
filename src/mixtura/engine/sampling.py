"""From logits to a token, in the order of transformers.

1. `logit_bias` is added.
2. The repetition penalty is applied, then the frequency and presence penalties (penalties.py).
3. The logits are divided by the temperature.
4. top-k, then top-p, then min-p remove tokens. Each applies to the tokens that are left.

B sequences, V vocabulary, K candidates for the nucleus.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from mixtura.config import Config
from mixtura.errors import ConfigError, NonFiniteError

# Imported for annotations alone: a command reads options without torch.
if TYPE_CHECKING:
    from torch import Generator, Tensor

# A nucleus (top-p) rarely has more tokens. Sorting the whole vocabulary costs much more.
_FEW = 256


# A logit times the largest penalty is finite in fp32. An infinite product would be reported as an
# error of the weights.
_LEAST_PENALTY, _MOST_PENALTY = 0.01, 100.0
# The bounds of OpenAI's API.
_MOST_ADDED, _MOST_BIAS = 2.0, 100.0


MAX_TOKENS = 256
"""the most tokens of an answer where neither the user nor the model sets a number"""


class Sampling(Config):
    """How the next token is sampled; `temperature=0` always takes the likeliest token."""

    temperature: float = 0.8
    top_k: int = 0
    """sample from the k likeliest tokens; 0 for all"""
    top_p: float = 1.0
    """sample from the fewest likeliest tokens whose probabilities sum to p or more; 1 for all"""
    min_p: float = 0.0
    """sample from tokens with at least this share of the likeliest token's probability; 0 for all
    (arXiv 2407.01082)"""
    repetition_penalty: float = 1.0
    """divides the logit of a token of the prompt or the answer; multiplies it if it is negative, as
    in transformers; 1 for none (CTRL, arXiv 1909.05858)"""
    frequency_penalty: float = 0.0
    """subtracted from a token's logit for each time that the answer has the token (OpenAI)"""
    presence_penalty: float = 0.0
    """subtracted once from the logit of a token that the answer has (OpenAI)"""
    logit_bias: Mapping[int, float] = {}
    """added to the logits of tokens, by their ids"""
    seed: int = 0

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        # A comparison with NaN is false, so conditions on allowed values refuse NaN too.
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
        """Raises ConfigError for a bias of a token outside the vocabulary."""
        beyond = [token for token in self.logit_bias if token >= vocabulary]
        if beyond:
            raise ConfigError(
                f"logit_bias of token {beyond[0]}: it must lie in 0..{vocabulary - 1}, the "
                "model's vocabulary"
            )


def sample(logits_BV: "Tensor", sampling: Sampling, generator: "Generator") -> "Tensor":
    """token_B for logits_BV, or a scalar for logits_V, int64.

    A token with the logit -inf is never sampled. Raises NonFiniteError for NaN, for +inf, and where
    all logits of a row are -inf.
    """
    check_finite(logits_BV)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    return sample_finite(logits_BV, sampling, generator)


def sample_finite(logits_BV: "Tensor", sampling: Sampling, generator: "Generator") -> "Tensor":
    """As `sample` at a temperature above 0, for logits that pass `check_finite`.

    It takes one random number a row. `torch.multinomial` takes one for each token of the
    vocabulary, which costs more than the other operations together.
    """
    summed_BV = probabilities(logits_BV, sampling).cumsum(-1)
    total_B1 = summed_BV[..., -1:]
    aim_B1 = total_B1 * total_B1.new_empty(total_B1.shape).uniform_(generator=generator)
    # The aim must stay below the total, even after rounding, since no token has the total's place.
    aim_B1 = aim_B1.minimum(total_B1.nextafter(total_B1.new_zeros(())))
    return (summed_BV <= aim_B1).sum(-1)


def check_finite(logits_BV: "Tensor") -> None:
    """Raises NonFiniteError for NaN, for +inf, and where all logits of a row are -inf."""
    if not logits_BV.amax(-1).isfinite().all():
        raise NonFiniteError(
            "the logits of the next token are not finite, so no token can be chosen; "
            "the weights hold NaN or infinity: take an earlier checkpoint"
        )


def probabilities(logits_BV: "Tensor", sampling: Sampling) -> "Tensor":
    """The probabilities by which `sample` selects, in float64; a row sums to 1.

    The temperature must be above 0.
    """
    # The largest logit is subtracted before a small temperature can make it infinite.
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
    """Keep tokens with at least `min_p` times the likeliest token's probability."""
    least_B1 = min_p * probs_BV.amax(-1, keepdim=True)
    kept_BV = probs_BV.masked_fill(probs_BV < least_B1, 0)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _nucleus(probs_BV: "Tensor", top_p: float) -> "Tensor":
    """Keep a token if the likelier tokens sum to less than `top_p` (arXiv 1904.09751)."""
    few = min(_FEW, probs_BV.shape[-1])
    kept_BK, token_BK = _kept(probs_BV, probs_BV.topk(few).indices.sort().values, top_p)
    # If the least likely candidate is kept or is as likely as a kept one, the nucleus may have
    # tokens that are no candidates, so all tokens become candidates.
    least_B = kept_BK.masked_fill(kept_BK == 0, math.inf).amin(-1)
    if few < probs_BV.shape[-1] and (least_B <= probs_BV.gather(-1, token_BK)[..., -1]).any():
        kept_BK, token_BK = _kept(probs_BV, None, top_p)
    kept_BV = probs_BV.new_zeros(probs_BV.shape).scatter(-1, token_BK, kept_BK)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _kept(probs_BV: "Tensor", among_BK: "Tensor | None", top_p: float) -> "tuple[Tensor, Tensor]":
    """(kept_BK, token_BK): probabilities, 0 outside the nucleus, and their tokens.

    The likeliest token is first; of equally likely tokens the lower id is first. `among_BK` has the
    candidates with ids rising; None means the whole vocabulary.
    """
    of_BK = probs_BV if among_BK is None else probs_BV.gather(-1, among_BK)
    sorted_BK, token_BK = of_BK.sort(dim=-1, descending=True, stable=True)
    reached_BK = sorted_BK.cumsum(-1) >= top_p
    # The token whose sum reaches top_p is kept, and every later token is removed.
    sorted_BK[..., 1:] = sorted_BK[..., 1:].masked_fill(reached_BK[..., :-1], 0)
    return sorted_BK, token_BK if among_BK is None else among_BK.gather(-1, token_BK)
