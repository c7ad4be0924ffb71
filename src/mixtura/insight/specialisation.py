"""Counts which expert is each token's first choice, by domain and by token.

It also computes statistics of the counts. D domains, E experts, T tokens of a text, V different
tokens among them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]

# A token that occurs fewer times than this is not characteristic of an expert.
_SEEN = 5


@dataclass(frozen=True, slots=True)
class Specialisation:
    """For one layer, how often each expert is the first choice of a domain's tokens."""

    counts_DE: Counts

    @property
    def share_DE(self) -> Shares:
        """Each expert's share of a domain's first choices; NaN for a domain without tokens."""
        return _divided(self.counts_DE, self.counts_DE.sum(1, keepdims=True))

    @property
    def share_E(self) -> Shares:
        """Each expert's share of all first choices."""
        return _divided(self.counts_DE.sum(0), self.counts_DE.sum())

    @property
    def lift_DE(self) -> Shares:
        """share_DE divided by share_E: 1 if the domain makes no difference, NaN for 0 / 0."""
        return _divided(self.share_DE, self.share_E)

    @property
    def information(self) -> float:
        """Mutual information of a token's first expert and its domain, in bits."""
        share_DE = _divided(self.counts_DE, self.counts_DE.sum())
        even_DE = share_DE.sum(1, keepdims=True) * share_DE.sum(0)
        seen = self.counts_DE > 0
        return float((share_DE[seen] * np.log2(share_DE[seen] / even_DE[seen])).sum())

    @property
    def domain_entropy(self) -> float:
        """Entropy of the domains in bits, the upper bound of `information`."""
        share_D = _divided(self.counts_DE.sum(1), self.counts_DE.sum())
        seen_D = share_D[share_D > 0]
        return float(-(seen_D * np.log2(seen_D)).sum())


def specialisation(
    domains_T: NDArray[np.integer], first_T: NDArray[np.integer], domains: int, num_experts: int
) -> Specialisation:
    """Count first choices by domain; tokens without an expert (-1) are left out."""
    has = first_T >= 0
    pair_T = domains_T[has].astype(np.int64) * num_experts + first_T[has]
    counts = np.bincount(pair_T, minlength=domains * num_experts)
    return Specialisation(counts.reshape(domains, num_experts))


def telling_tokens(
    tokens_T: NDArray[np.integer], first_T: NDArray[np.integer], num_experts: int, most: int
) -> list[list[int]]:
    """For each expert its most characteristic tokens, the most characteristic first.

    A token that chose the expert n times is ranked by n log(n / n_even), its term in the mutual
    information of token and expert. n_even is the number to expect if choices did not depend on the
    token. Only tokens with n > n_even that occur five times or more are ranked.
    """
    has = first_T >= 0
    kinds, kind_T = np.unique(tokens_T[has], return_inverse=True)
    pair_T = kind_T.astype(np.int64) * num_experts + first_T[has]
    count_VE = np.bincount(pair_T, minlength=len(kinds) * num_experts)
    count_VE = count_VE.reshape(len(kinds), num_experts).astype(np.float64)
    even_VE = count_VE.sum(1, keepdims=True) * count_VE.sum(0) / max(1.0, count_VE.sum())
    over = (count_VE > even_VE) & (count_VE.sum(1, keepdims=True) >= _SEEN)
    safe_VE = np.where(over, count_VE, 1.0) / np.where(over, even_VE, 1.0)
    score_VE = np.where(over, count_VE * np.log(safe_VE), 0.0)
    order_VE = np.argsort(-score_VE, axis=0, kind="stable")[:most]
    return [
        [int(kinds[v]) for v in order_VE[:, expert] if score_VE[v, expert] > 0]
        for expert in range(num_experts)
    ]


def _divided(above: NDArray[np.number], below: NDArray[np.number] | np.number) -> Shares:
    """above / below; NaN, without a warning, for 0 / 0."""
    below = np.asarray(below, np.float64)
    return np.asarray(above, np.float64) / np.where(below == 0, np.nan, below)
