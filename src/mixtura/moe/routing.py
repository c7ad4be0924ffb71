"""The one value that crosses the layer: what a router decided for its tokens.

T tokens, E experts, K experts per token, N routed rows, B sequences of S tokens each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router decided for T tokens, as N rows: T*K for token choice, E*C for expert choice.

    Load, balance losses, bias updates and alarms read `chosen_N`, what the router wanted: after
    rerouting, a collapsed router looks even. Drops and work per device read `expert_N`.
    """

    token_N: Tensor
    """row -> token, int64"""
    choice_N: Tensor
    """row -> rank of the choice; 0 is the token's first expert"""
    chosen_N: Tensor
    """row -> the expert wished for, before capacity"""
    expert_N: Tensor
    """row -> the expert that computes it; num_experts where none had room, and for padding"""
    weight_N: Tensor
    """row -> combine weight, differentiable; 0 where none had room, and for padding"""
    logits_TE: Tensor | None
    """before any activation (the z-loss needs them); None for hash routers"""
    probs_TE: Tensor | None
    """what the router believed; each row sums to 1"""
    valid_T: Tensor | None
    """False for padding; None where there is none"""
    num_experts: int
    num_sequences: int = 1
    """the T tokens are this many sequences of equal length, one after the other"""
    top_k: int | None = None
    """K where row n is choice n % K of token n // K; None where rows come in another order"""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """a router's own differentiable quantities (smooth load, log-probabilities)"""

    @property
    def num_tokens(self) -> int:
        if self.top_k is not None:
            return self.token_N.shape[0] // self.top_k
        rows = self.probs_TE if self.probs_TE is not None else self.valid_T
        assert rows is not None, "a router with neither probs_TE nor top_k must give valid_T"
        return rows.shape[0]

    @property
    def sequence_N(self) -> Tensor:
        """row -> sequence"""
        return self.token_N // (self.num_tokens // self.num_sequences)

    @property
    def valid_N(self) -> Tensor | None:
        """row -> False where its token is padding; None where there is no padding"""
        return None if self.valid_T is None else self.valid_T[self.token_N]

    @property
    def lost_N(self) -> Tensor:
        """row -> True where no expert computes it although its token is no padding"""
        lost_N = self.expert_N == self.num_experts
        return lost_N if self.valid_N is None else lost_N & self.valid_N


def token_rows(num_tokens: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """token_N and choice_N of token choice: row n is choice n % top_k of token n // top_k."""
    row_N = torch.arange(num_tokens * top_k, device=device)
    return row_N // top_k, row_N % top_k
