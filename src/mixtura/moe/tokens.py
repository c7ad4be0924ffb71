"""What a router reads: the tokens of a batch, one after another.

T tokens, D model width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """T tokens, and what a router may know of them."""

    x_TD: Tensor
    valid_T: Tensor | None = None
    """False for padding; None where there is none"""
    num_sequences: int = 1
    """the T tokens are this many sequences of equal length, one after the other"""
    id_T: Tensor | None = None
    """token ids, which hash routers need and no other reads"""


def mean_over_tokens(of_T: Tensor, valid_T: Tensor | None) -> Tensor:
    """The mean over tokens, differentiable; padding left out, and 0 where there is no token."""
    if valid_T is None:
        return of_T.sum() / max(len(of_T), 1)
    return (of_T * valid_T).sum() / valid_T.sum().clamp(min=1)
