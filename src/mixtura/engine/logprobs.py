"""Log probabilities of an answer's tokens, and of the likeliest tokens in their places.

V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from mixtura.errors import ConfigError

MOST = 100
"""the most tokens that are listed for a place"""


@dataclass(frozen=True, slots=True)
class Likely:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprobs:
    """A token of an answer, its log probability, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[Likely, ...]
    """the likeliest token first"""


def logprobs_of(logits_V: Tensor, token: int, count: int) -> Logprobs:
    """Log probabilities of the model itself: at temperature 1, before any setting of `Sampling`.

    Logits of tokens without a text are -inf. `count` is the most tokens in `top`.
    """
    logprobs_V = logits_V.double().log_softmax(-1)
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    # JSON has no -inf, which is the logarithm of 0.
    finite = tuple(Likely(one, value) for one, value in top if value > float("-inf"))
    return Logprobs(token, float(logprobs_V[token]), finite)


def check_count(logprobs: int | None) -> None:
    """Raises ConfigError for a number outside 0..MOST."""
    if logprobs is not None and not 0 <= logprobs <= MOST:
        raise ConfigError(
            f"logprobs={logprobs} must lie in 0..{MOST}; 0 gives the token's own alone"
        )
