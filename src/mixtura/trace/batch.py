"""Tokens and their routing as arrays.

T tokens, N rows of one layer: the experts that each token chose, E experts, K choices at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NOBODY = -1


@dataclass(frozen=True, slots=True, eq=False)
class LayerRows:
    """What one layer's router decided: token by token, each token's first choice first."""

    start_T1: NDArray[np.int64]
    """token t has the rows start[t] up to start[t + 1]; one entry more than tokens"""
    chosen_N: NDArray[np.int32]
    """the expert wished for"""
    weight_N: NDArray[np.float32]
    """its combine weight; 0 where no expert computed the row"""
    computed_N: NDArray[np.int32]
    """the expert that computed the row; -1 where none had room"""
    probs_TE: NDArray[np.floating] | None = None
    """what the router believed; None where it was not recorded, or not read"""

    def __len__(self) -> int:
        return len(self.start_T1) - 1

    @property
    def count_T(self) -> NDArray[np.int64]:
        """How many experts each token chose."""
        return np.diff(self.start_T1)

    @property
    def token_N(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), self.count_T)

    @property
    def choice_N(self) -> NDArray[np.int64]:
        """Rank of the choice; 0 is the token's first expert."""
        return np.arange(len(self.chosen_N)) - np.repeat(self.start_T1[:-1], self.count_T)

    def by_choice(self, of_N: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
        """of_TK: a row's value by token and rank of choice; `fill` where a token has fewer."""
        of_TK = np.full((len(self), width), fill, of_N.dtype)
        of_TK[self.token_N, self.choice_N] = of_N
        return of_TK

    def take(self, index_T: NDArray[np.integer]) -> Self:
        """The rows of these tokens, in their order."""
        count_T = self.count_T[index_T]
        start_T1 = np.concatenate([[0], np.cumsum(count_T)])
        row_N = np.arange(start_T1[-1]) + np.repeat(self.start_T1[index_T] - start_T1[:-1], count_T)
        return type(self)(
            start_T1,
            self.chosen_N[row_N],
            self.weight_N[row_N],
            self.computed_N[row_N],
            None if self.probs_TE is None else self.probs_TE[index_T],
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        count_T = np.concatenate([part.count_T for part in parts])
        probs = [part.probs_TE for part in parts if part.probs_TE is not None]
        return cls(
            np.concatenate([[0], np.cumsum(count_T)]),
            np.concatenate([part.chosen_N for part in parts]),
            np.concatenate([part.weight_N for part in parts]),
            np.concatenate([part.computed_N for part in parts]),
            np.concatenate(probs) if probs else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TraceBatch:
    """T tokens, in the order in which a model read them, and what each layer did with them."""

    id_T: NDArray[np.int32]
    position_T: NDArray[np.int32]
    """in the token's sequence, from 0"""
    sequence_T: NDArray[np.int32]
    """which sequence, or document, the token is of"""
    domain_T: NDArray[np.int32]
    """the number of its domain's name in the reader or writer; -1 where it has none"""
    layers: Mapping[int, LayerRows]
    """by the layer's number in the model"""

    def __len__(self) -> int:
        return len(self.id_T)

    def take(self, index_T: NDArray[np.integer]) -> Self:
        """These tokens, in this order."""
        return type(self)(
            self.id_T[index_T],
            self.position_T[index_T],
            self.sequence_T[index_T],
            self.domain_T[index_T],
            {number: rows.take(index_T) for number, rows in self.layers.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other; at least one, all of the same layers."""
        return cls(
            np.concatenate([part.id_T for part in parts]),
            np.concatenate([part.position_T for part in parts]),
            np.concatenate([part.sequence_T for part in parts]),
            np.concatenate([part.domain_T for part in parts]),
            {n: LayerRows.joined([part.layers[n] for part in parts]) for n in parts[0].layers},
        )
