"""How likely the model held a token, and what it held likelier.

V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from mixtura.errors import ConfigError

MOST = 100


@dataclass(frozen=True, slots=True)
class Likely:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token of an answer; `top` are the likeliest at its place, the first the likeliest."""

    token: int
    logprob: float
    top: tuple[Likely, ...]


def logprobs_of(logits_V: Tensor, token: int, count: int) -> Logprobs:
    """The model's own, of all tokens with a text, at temperature 1, before any `Sampling`."""
    logprobs_V = logits_V.double().log_softmax(-1)
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    # The logarithm of 0 is no number that JSON knows.
    finite = tuple(Likely(one, value) for one, value in top if value > float("-inf"))
    return Logprobs(token, float(logprobs_V[token]), finite)


def check_count(logprobs: int | None) -> None:
    """Raises ConfigError."""
    if logprobs is not None and not 0 <= logprobs <= MOST:
        raise ConfigError(
            f"logprobs={logprobs} must lie in 0..{MOST}; 0 gives the token's own alone"
        )
