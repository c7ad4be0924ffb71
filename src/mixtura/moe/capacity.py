"""How many rows an expert takes, and what becomes of the rest.

T tokens, E experts, R = E ranks of them for a token, K experts per token, B sequences of S tokens,
N = T*K rows.

An expert's capacity is ceil(factor * rows / E), counted over each sequence by itself, so that it
depends neither on ranks nor on neighbours in the batch. Rows are admitted by token and then by
choice, so that no later token displaces an earlier one. Padding takes no room.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mixtura.config import Config


class Capacity(Protocol):
    """A capacity rule for token choice."""

    def admit(
        self, ranking_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None, num_sequences: int
    ) -> Tensor:
        """expert_TK: the expert that computes each choice; E where none does, and for padding.

        `ranking_TE` orders the experts for each token, the best highest.
        """
        ...


class CapacityConfig(Config):
    """`dropless`; `drop` (the residual carries the token); `reroute` to the next-best expert."""

    policy: Literal["dropless", "drop", "reroute"] = "dropless"
    factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _factor_fits_policy(self) -> Self:
        if self.policy == "dropless" and self.factor is not None:
            raise ValueError(
                f"factor={self.factor} has no meaning under policy=dropless; "
                "choose policy=drop or policy=reroute, or leave factor out"
            )
        return self

    def build(self) -> Capacity:
        # 1.25: the middle of Switch's sweep over 1.0, 1.25 and 2.0 (arXiv 2101.03961, table 1).
        factor = 1.25 if self.factor is None else self.factor
        match self.policy:
            case "dropless":
                return Dropless()
            case "drop":
                return Drop(factor)
            case "reroute":
                return Reroute(factor)


@dataclass(frozen=True, slots=True)
class Dropless:
    """Every row is computed by the expert that it chose."""

    def admit(
        self, ranking_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None, num_sequences: int
    ) -> Tensor:
        return without_padding(chosen_TK, valid_T, ranking_TE.shape[1])


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that finds its expert full is lost; the residual connection carries the token."""

    factor: float

    def admit(
        self, ranking_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None, num_sequences: int
    ) -> Tensor:
        num_experts = ranking_TE.shape[1]
        expert_TK = without_padding(chosen_TK, valid_T, num_experts)
        capacity_B = sequence_capacity(self.factor, chosen_TK, valid_T, num_sequences, num_experts)
        place_BN = places(expert_TK.reshape(num_sequences, -1), num_experts)
        full_TK = (place_BN >= capacity_B[:, None]).view_as(expert_TK)
        return expert_TK.masked_fill(full_TK, num_experts)


@dataclass(frozen=True, slots=True)
class Reroute:
    """A row that finds its expert full goes to the token's next-best expert with room.

    Dropped only if none has. Token by token, each takes the best K experts that still have room.
    That serial rule is a stable matching in which all experts rank tokens by position, so it is
    reached in parallel by deferred acceptance: every token proposes to its best K experts that have
    not refused it, every expert keeps the earliest, until none is refused. Each round waits for the
    device once.
    """

    factor: float

    def admit(
        self, ranking_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None, num_sequences: int
    ) -> Tensor:
        num_tokens, num_experts = ranking_TE.shape
        top_k = chosen_TK.shape[1]
        capacity_B = sequence_capacity(self.factor, chosen_TK, valid_T, num_sequences, num_experts)
        # The choice stands first, and ties are broken here, once: were they broken anew in each
        # round, a token would let go what it held and leave room unused.
        wish_TE = ranking_TE.detach().scatter(1, chosen_TK, torch.inf)
        best_first_TE = wish_TE.argsort(dim=-1, descending=True, stable=True)
        rank_TE = best_first_TE.argsort(dim=-1)
        # By rank: column 0 is the token's best expert. A sum along it replaces a top-k a round.
        allowed_TR = torch.ones_like(rank_TE, dtype=torch.bool)
        if valid_T is not None:
            allowed_TR &= valid_T[:, None]
        while True:
            held_TR = allowed_TR & (allowed_TR.cumsum(1) <= top_k)
            held_TE = held_TR.gather(1, rank_TE)
            held_BSE = held_TE.view(num_sequences, -1, num_experts)
            refused_BSE = held_BSE & (held_BSE.cumsum(1) > capacity_B[:, None, None])
            if not refused_BSE.any():
                return _to_rows(held_TE, rank_TE, chosen_TK)
            refused_TE = refused_BSE.view(num_tokens, num_experts)
            allowed_TR &= ~refused_TE.gather(1, best_first_TE)


def _to_rows(held_TE: Tensor, rank_TE: Tensor, chosen_TK: Tensor) -> Tensor:
    """Rows keep the choice they hold; the others take the token's further experts, best first."""
    num_experts, top_k = held_TE.shape[1], chosen_TK.shape[1]
    kept_TK = held_TE.gather(1, chosen_TK)
    extra_TE = held_TE.scatter(1, chosen_TK, value=False)
    extra_TK = rank_TE.masked_fill(~extra_TE, num_experts).topk(top_k, largest=False).indices
    extra_TK = extra_TK.masked_fill(~extra_TE.gather(1, extra_TK), num_experts)
    nth_extra_TK = ((~kept_TK).cumsum(1) - 1).clamp(min=0)
    return torch.where(kept_TK, chosen_TK, extra_TK.gather(1, nth_extra_TK))


def sequence_capacity(
    factor: float,
    chosen_TK: Tensor,
    valid_T: Tensor | None,
    num_sequences: int,
    num_experts: int,
) -> Tensor:
    """capacity_B = ceil(factor * rows / E), int64, rows counted over each sequence's tokens."""
    num_tokens, top_k = chosen_TK.shape
    if valid_T is None:
        tokens_B = chosen_TK.new_full((num_sequences,), num_tokens // num_sequences)
    else:
        tokens_B = valid_T.view(num_sequences, -1).sum(1)
    # 1.1 * 50 is 55.00000000000001 in float64; the ceiling must not see that.
    exact_B = tokens_B.double() * top_k * factor / num_experts
    return (exact_B - 1e-9).ceil().long()


def places(expert_BN: Tensor, num_experts: int) -> Tensor:
    """place_BN: how many earlier rows of the same sequence have the same expert."""
    num_sequences, rows = expert_BN.shape
    sequence_B1 = torch.arange(num_sequences, device=expert_BN.device)[:, None]
    key_N = (expert_BN + sequence_B1 * (num_experts + 1)).view(-1)
    sorted_N, order_N = key_N.sort(stable=True)
    first_N = torch.searchsorted(sorted_N, sorted_N)
    rank_N = torch.arange(num_sequences * rows, device=expert_BN.device) - first_N
    return torch.empty_like(rank_N).scatter_(0, order_N, rank_N).view(num_sequences, rows)


def without_padding(chosen_TK: Tensor, valid_T: Tensor | None, num_experts: int) -> Tensor:
    if valid_T is None:
        return chosen_TK
    return chosen_TK.masked_fill(~valid_T[:, None], num_experts)
