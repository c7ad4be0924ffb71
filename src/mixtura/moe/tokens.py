"""A router's input: the tokens of all sequences of a batch, one sequence after another.

T tokens, D model width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """T tokens, with everything that a router may read of them."""

    x_TD: Tensor
    valid_T: Tensor | None = None
    """False for padding; None if there is no padding"""
    num_sequences: int = 1
    """the T tokens are this many sequences of equal length, one after another"""
    id_T: Tensor | None = None
    """token ids, which only hash routers read"""


def mean_over_tokens(of_T: Tensor, valid_T: Tensor | None) -> Tensor:
    """The mean over all tokens except padding, differentiable; 0 if all tokens are padding."""
    if valid_T is None:
        return of_T.sum() / max(len(of_T), 1)
    return (of_T * valid_T).sum() / valid_T.sum().clamp(min=1)
