"""Tokens and their routing as arrays.

T tokens, T1 is T + 1, E experts, K the most choices of a token. A layer has N routed rows: one row
for each expert that a token chose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ABSENT = -1
"""the number that stands for no expert or no domain"""


@dataclass(frozen=True, slots=True, eq=False)
class LayerRows:
    """One layer's routing. Rows are sorted by token, then by the rank of the choice."""

    start_T1: NDArray[np.int64]
    """token t has the rows start_T1[t] to start_T1[t + 1] - 1"""
    chosen_N: NDArray[np.int32]
    """the expert that the token chose, before capacity"""
    weight_N: NDArray[np.float32]
    """the row's combine weight; 0 for a dropped row"""
    computed_N: NDArray[np.int32]
    """the expert that computed the row; -1 for a dropped row"""
    probs_TE: NDArray[np.floating] | None = None
    """the router's probabilities; None if they were not recorded or not read"""

    def __len__(self) -> int:
        return len(self.start_T1) - 1

    @property
    def count_T(self) -> NDArray[np.int64]:
        """The number of experts that each token chose."""
        return np.diff(self.start_T1)

    @property
    def token_N(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), self.count_T)

    @property
    def choice_N(self) -> NDArray[np.int64]:
        """The rank of each row's choice; 0 is the token's first choice."""
        return np.arange(len(self.chosen_N)) - np.repeat(self.start_T1[:-1], self.count_T)

    def by_choice(self, of_N: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
        """The rows' values as (T, width), by token and choice; missing choices have `fill`."""
        of_TK = np.full((len(self), width), fill, of_N.dtype)
        of_TK[self.token_N, self.choice_N] = of_N
        return of_TK

    def take(self, index_T: NDArray[np.integer]) -> Self:
        """The rows of the tokens `index_T`, in the order of `index_T`."""
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
        """The rows of all parts, one part after another."""
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
    """T tokens, in the order in which a model read them, and their routing in each layer."""

    id_T: NDArray[np.int32]
    position_T: NDArray[np.int32]
    """the token's place in its sequence, from 0"""
    sequence_T: NDArray[np.int32]
    """the number of the token's sequence or document"""
    domain_T: NDArray[np.int32]
    """the index of the domain in `domains` of the reader or writer; -1 for no domain"""
    layers: Mapping[int, LayerRows]
    """the routing of each layer, by the layer's number in the model"""

    def __len__(self) -> int:
        return len(self.id_T)

    def take(self, index_T: NDArray[np.integer]) -> Self:
        """The tokens `index_T`, in the order of `index_T`."""
        return type(self)(
            self.id_T[index_T],
            self.position_T[index_T],
            self.sequence_T[index_T],
            self.domain_T[index_T],
            {number: rows.take(index_T) for number, rows in self.layers.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The tokens of all parts, one part after another.

        There must be at least one part, and all parts must have the same layers.
        """
        return cls(
            np.concatenate([part.id_T for part in parts]),
            np.concatenate([part.position_T for part in parts]),
            np.concatenate([part.sequence_T for part in parts]),
            np.concatenate([part.domain_T for part in parts]),
            {n: LayerRows.joined([part.layers[n] for part in parts]) for n in parts[0].layers},
        )
