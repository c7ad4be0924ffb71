"""Capacity policies: the most rows that an expert computes, and what becomes of its other rows.

An expert's capacity is ceil(factor * rows / E). Each token except padding counts as K rows. An
unused row takes no room at an expert. The scope decides which rows are counted together, and which
rows an expert admits first:

- `sequence` (the default): each sequence is counted by itself. Rows are admitted by token, then by
  choice. The result depends neither on the number of ranks nor on other sequences in the batch, and
  no later token displaces an earlier token.
- `group`: all tokens of this rank are counted together. All first choices are admitted before all
  second choices, as in GShard (arXiv 2006.16668, algorithm 1) and Switch.

T tokens, E experts, K experts per token, N = T*K rows, B sequences of S tokens, G groups of tokens.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mixtura.config import Config

Policy = Literal["dropless", "drop", "reroute", "wave"]
CapacityScope = Literal["sequence", "group"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The chosen experts of T tokens, before capacity."""

    chosen_TK: Tensor
    """each token's experts, the best first; E for an unused row"""
    num_experts: int
    num_sequences: int = 1
    valid_T: Tensor | None = None
    ranking_TE: Tensor | None = None
    """each token's preference for each expert, higher is better; -inf for an expert that the token
    must not have"""

    @property
    def expert_TK(self) -> Tensor:
        """The expert of each row; E for padding and for unused rows."""
        if self.valid_T is None:
            return self.chosen_TK
        return self.chosen_TK.masked_fill(~self.valid_T[:, None], self.num_experts)


@dataclass(frozen=True, slots=True)
class Admission:
    """The expert that computes each row."""

    expert_TK: Tensor
    """E for a row that no expert computes"""
    wave_TK: Tensor | None = None
    """the pass over the experts in which each row is computed, counted from 0; None if there is a
    single pass"""
    moved: bool = False
    """whether a row may have another expert than its chosen expert"""


class Capacity(Protocol):
    """A capacity rule for routers whose tokens choose experts."""

    def admit(self, candidates: Candidates) -> Admission: ...


class CapacityConfig(Config):
    """The policy for rows beyond an expert's capacity, with the capacity factor and the scope.

    `dropless` has no capacity. `drop` drops the rows beyond the capacity, `reroute` moves each of
    them to its token's next-best expert with room, and `wave` computes them in a further pass over
    the experts.
    """

    policy: Policy = "dropless"
    factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    scope: CapacityScope = "sequence"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy == "dropless" and self.factor is not None:
            raise ValueError(
                f"factor={self.factor} has no meaning under policy=dropless; "
                "choose policy=drop, policy=reroute or policy=wave, or leave factor out"
            )
        if self.policy == "reroute" and self.scope == "group":
            raise ValueError(
                "scope=group has no meaning under policy=reroute: a row's next-best expert is "
                "sought token by token, not choice by choice; choose scope=sequence"
            )
        return self

    def build(self) -> Capacity:
        # The default is the middle one of the capacity factors 1.0, 1.25 and 2.0 that Switch
        # compares (arXiv 2101.03961, table 1).
        factor = 1.25 if self.factor is None else self.factor
        match self.policy:
            case "dropless":
                return Dropless()
            case "drop":
                return Drop(factor, self.scope)
            case "reroute":
                return Reroute(factor)
            case "wave":
                return Wave(factor, self.scope)


@dataclass(frozen=True, slots=True)
class Dropless:
    """There is no capacity: every row is computed by its chosen expert."""

    def admit(self, candidates: Candidates) -> Admission:
        return Admission(candidates.expert_TK)


@dataclass(frozen=True, slots=True)
class Drop:
    """A row beyond its expert's capacity is dropped; the residual connection carries the token."""

    factor: float
    scope: CapacityScope = "sequence"

    def admit(self, candidates: Candidates) -> Admission:
        place_TK, capacity_T1 = _places(candidates, self.factor, self.scope)
        full_TK = place_TK >= capacity_T1
        return Admission(candidates.expert_TK.masked_fill(full_TK, candidates.num_experts))


@dataclass(frozen=True, slots=True)
class Wave:
    """A row beyond its expert's capacity is computed in a further pass; no row is dropped.

    The result equals that of `Dropless`, but needs smaller buffers. A pass over the experts has at
    most `capacity` rows of an expert, while the single pass of `Dropless` has all rows of the
    busiest expert.
    """

    factor: float
    scope: CapacityScope = "sequence"

    def admit(self, candidates: Candidates) -> Admission:
        place_TK, capacity_T1 = _places(candidates, self.factor, self.scope)
        expert_TK = candidates.expert_TK
        wave_TK = place_TK // capacity_T1.clamp(min=1)
        # An unused row is put into pass 0, so that it does not add a pass.
        return Admission(expert_TK, wave_TK.masked_fill(expert_TK == candidates.num_experts, 0))


@dataclass(frozen=True, slots=True)
class Reroute:
    """A row beyond its expert's capacity goes to the token's next-best expert with room.

    The rule is serial: token after token gets its best K experts that still have room. A row is
    dropped only if no expert has room. The result is a stable matching in which every expert
    prefers earlier tokens, so deferred acceptance computes it in parallel: in each round every
    token proposes to its best K experts that have not refused it, and every expert holds the
    earliest tokens and refuses the others. The rounds end when no expert refuses a token. Each
    round waits for the device once.
    """

    factor: float

    def admit(self, candidates: Candidates) -> Admission:
        """In the names, dim R is an expert's rank for a token: 0 is the token's best expert."""
        chosen_TK, ranking_TE = candidates.chosen_TK, candidates.ranking_TE
        assert ranking_TE is not None, "rerouting needs a ranking of all experts"
        num_tokens, num_experts = ranking_TE.shape
        capacity_B = group_capacity(self.factor, candidates, candidates.num_sequences)
        # Chosen experts rank first. Ties are broken once, before the rounds: if each round broke
        # ties anew, a token could leave an expert that holds it, and that expert's room would stay
        # unused.
        priority_TE = _with_extra(ranking_TE).scatter(1, chosen_TK, torch.inf)[:, :-1]
        best_first_TE = priority_TE.argsort(dim=-1, descending=True, stable=True)
        rank_TE = best_first_TE.argsort(dim=-1)
        # The columns of allowed_TR are a token's experts from the best to the worst. So a
        # cumulative sum finds the best K allowed experts in each round, and no round needs a top-k.
        allowed_TR = priority_TE.gather(1, best_first_TE) > -torch.inf
        count_T1 = (candidates.expert_TK < num_experts).sum(1, keepdim=True)
        while True:
            held_TR = allowed_TR & (allowed_TR.cumsum(1) <= count_T1)
            held_TE = held_TR.gather(1, rank_TE)
            held_BSE = held_TE.view(candidates.num_sequences, -1, num_experts)
            refused_BSE = held_BSE & (held_BSE.cumsum(1) > capacity_B[:, None, None])
            if not refused_BSE.any():
                return Admission(_to_rows(held_TE, rank_TE, chosen_TK), moved=True)
            refused_TE = refused_BSE.view(num_tokens, num_experts)
            allowed_TR &= ~refused_TE.gather(1, best_first_TE)


def _to_rows(held_TE: Tensor, rank_TE: Tensor, chosen_TK: Tensor) -> Tensor:
    """Distribute the experts that hold a token, at most K, over the token's K rows.

    A row keeps its chosen expert if that expert holds the token. The other rows get the other
    experts that hold the token, the best first, or E if no such expert remains.
    """
    num_experts, top_k = held_TE.shape[1], chosen_TK.shape[1]
    held_TE = _with_extra(held_TE)
    kept_TK = held_TE.gather(1, chosen_TK)
    extra_TE = held_TE.scatter(1, chosen_TK, value=False)[:, :-1]
    extra_TK = rank_TE.masked_fill(~extra_TE, num_experts).topk(top_k, largest=False).indices
    extra_TK = extra_TK.masked_fill(~extra_TE.gather(1, extra_TK), num_experts)
    used_TK = chosen_TK < num_experts
    nth_extra_TK = ((used_TK & ~kept_TK).cumsum(1) - 1).clamp(min=0)
    moved_TK = torch.where(used_TK, extra_TK.gather(1, nth_extra_TK), num_experts)
    return torch.where(kept_TK, chosen_TK, moved_TK)


def _with_extra(of_TE: Tensor) -> Tensor:
    """Append a column of zeros for the expert number E, which unused rows have."""
    return torch.nn.functional.pad(of_TE.detach(), (0, 1))


def _places(candidates: Candidates, factor: float, scope: CapacityScope) -> tuple[Tensor, Tensor]:
    """(place, capacity) of each row, which decide whether the row is beyond its expert's capacity.

    The place, (T, K), is the number of rows that choose the same expert in the same scope and are
    admitted earlier. A row is beyond the capacity if place >= capacity. The capacity is (T, 1), or
    (1, 1) under scope `group`.
    """
    expert_TK, num_experts = candidates.expert_TK, candidates.num_experts
    num_tokens, top_k = expert_TK.shape
    if scope == "group":
        place_KT = places(expert_TK.T.reshape(1, -1), num_experts).view(top_k, num_tokens)
        return place_KT.T, group_capacity(factor, candidates, 1)[:, None]
    place_TK = places(expert_TK.reshape(candidates.num_sequences, -1), num_experts)
    place_TK = place_TK.view_as(expert_TK)
    capacity_B = group_capacity(factor, candidates, candidates.num_sequences)
    capacity_T = capacity_B.repeat_interleave(num_tokens // candidates.num_sequences)
    return place_TK, capacity_T[:, None]


def group_capacity(factor: float, candidates: Candidates, groups: int) -> Tensor:
    """capacity_G = ceil(factor * rows / E), int64, for G groups of consecutive tokens."""
    # Unused rows are counted too. Otherwise the capacity would depend on the choices of later
    # tokens.
    num_tokens, top_k = candidates.chosen_TK.shape
    if candidates.valid_T is None:
        rows_G = candidates.chosen_TK.new_full((groups,), num_tokens // groups * top_k)
    else:
        rows_G = candidates.valid_T.view(groups, -1).sum(1) * top_k
    # In float64 1.1 * 50 is 55.00000000000001; without the 1e-9 the capacity would be 56, not 55.
    exact_G = rows_G.double() * factor / candidates.num_experts
    return (exact_G - 1e-9).ceil().long()


def places(expert_GN: Tensor, num_experts: int) -> Tensor:
    """place_GN: the number of earlier rows in the same group that have the same expert."""
    groups, rows = expert_GN.shape
    group_G1 = torch.arange(groups, device=expert_GN.device)[:, None]
    key_N = (expert_GN + group_G1 * (num_experts + 1)).view(-1)
    sorted_N, order_N = key_N.sort(stable=True)
    first_N = torch.searchsorted(sorted_N, sorted_N)
    rank_N = torch.arange(groups * rows, device=expert_GN.device) - first_N
    return torch.empty_like(rank_N).scatter_(0, order_N, rank_N).view(groups, rows)
