"""From logits to a token: temperature, then top-k, then top-p.

B sequences, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from mixtura.config import Config
from mixtura.errors import NonFiniteError

# Only for annotations: the functions below need no more than the tensors they are given.
if TYPE_CHECKING:
    from torch import Generator, Tensor

# In how many of the likeliest tokens a nucleus lies, as a rule; to sort them all costs much more.
_FEW = 256


class Sampling(Config):
    """How the next token is chosen; `temperature=0` takes the likeliest and draws nothing."""

    temperature: float = 0.8
    top_k: int = 0
    """draw from the k likeliest tokens only; 0 for all"""
    top_p: float = 1.0
    """draw from the fewest likeliest tokens whose probabilities reach p; 1 for all"""
    seed: int = 0

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be 0 or more; 0 takes the likeliest token"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 or more; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in 0..2^63-1; choose another")
        return self


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
    return _nucleus(probs_BV, sampling.top_p) if sampling.top_p < 1 else probs_BV


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
