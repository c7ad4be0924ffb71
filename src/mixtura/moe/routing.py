"""`Routing`, the value that a router returns for its tokens.

A routed row is one token sent to one expert. T tokens, E experts, K experts per token, N routed
rows. In `Level`: R rows of a level, S choices of a gate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a hierarchical router: one or more gates, each of which has S choices.

    At the last level a choice is an expert; at the levels before, a choice is a group of
    consecutive experts. All choices of a level have equally many experts. Choice s of gate g has
    number g * S + s in the level. A row of the level is one token at one gate: at the second level
    a token has a row for each group that it is sent to.
    """

    token_R: Tensor
    """the token of each row, int64"""
    bank_R: Tensor | None
    """the gate of each row; None if the level has one gate"""
    probs_RS: Tensor
    """the probabilities that the row's gate gives to its S choices; they sum to 1 in each row"""
    banks: int = 1
    """number of gates"""
    used_R: Tensor | None = None
    """False for a row whose token was sent to the gate's group but abandoned it, as GShard abandons
    second choices; None if no token abandoned a group"""


rules_are_checked = False
"""whether each new Routing is checked against `_rules`; the check waits for the device, so only the
tests set this to True"""


@dataclass(frozen=True, slots=True)
class Routing:
    """A router's decision for T tokens, as N routed rows.

    N is T*K if tokens choose experts, and E*C if each of E experts chooses C tokens. Load, balance
    losses, bias updates and alarms are computed from `chosen_N`, the router's own choice. They are
    not computed from `expert_N`, because rerouting spreads the rows of a collapsed router evenly
    over the experts. Dropped rows and the work of each device are computed from `expert_N`.
    """

    token_N: Tensor
    """the token of each row, int64"""
    choice_N: Tensor
    """the rank of a row's expert among its token's experts; 0 is the token's first expert"""
    chosen_N: Tensor
    """the expert that the router chose for each row, before capacity; num_experts for an unused
    row"""
    expert_N: Tensor
    """the expert that computes each row; num_experts if no expert does, and for padding"""
    weight_N: Tensor
    """the combine weight of each row, differentiable; 0 if no expert computes the row"""
    logits_TE: Tensor | None
    """the gate's outputs before any activation, for the z-loss; None for hash and hierarchical
    routers"""
    probs_TE: Tensor | None
    """the router's probabilities, which sum to 1 for each token; None if `logits_TE` is None"""
    valid_T: Tensor | None
    """False for padding; None if there is no padding"""
    num_experts: int
    num_sequences: int = 1
    """the T tokens are this many sequences of equal length, one after another"""
    top_k: int | None = None
    """K if row n is choice n % K of token n // K; None if the rows are in another order"""
    wave_N: Tensor | None = None
    """the pass over the experts in which each row is computed, counted from 0; None if there is a
    single pass"""
    product_dtype: torch.dtype | None = None
    """the dtype to which each weighted expert output is rounded before a token's outputs are
    summed, as in transformers in bf16; None if only the sum is rounded"""
    num_groups: int = 1
    """the number of groups of consecutive experts, all of one size; a group may be one device's
    experts"""
    groups_kept: int = 1
    """the largest number of groups in which a token may have experts"""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """a router's own quantities by name, such as `gate_N`, the combine weights before capacity, and
    `load_E`, the smooth load of Shazeer 2017 (arXiv 1701.06538)"""
    levels: tuple[Level, ...] = ()
    """the levels of a hierarchical router, the outermost first; empty for other routers"""

    def __post_init__(self) -> None:
        if rules_are_checked:
            broken = broken_rule(self)
            assert broken is None, broken

    @classmethod
    def of_choices(
        cls,
        chosen_TK: Tensor,
        weight_TK: Tensor,
        num_experts: int,
        *,
        dropped_TK: Tensor | None = None,
        logits_TE: Tensor | None = None,
        probs_TE: Tensor | None = None,
        valid_T: Tensor | None = None,
        num_sequences: int = 1,
    ) -> Self:
        """Build the routing of a router whose tokens choose experts.

        `chosen_TK` lists each token's experts, the best first; an unused row has the number E. No
        expert computes a row of padding, or a row that is True in `dropped_TK`: the weights of
        these rows become 0.
        """
        unused = chosen_TK == num_experts
        unused = unused if dropped_TK is None else unused | dropped_TK
        unused = unused if valid_T is None else unused | ~valid_T[:, None]
        token_N, choice_N = token_rows(len(chosen_TK), chosen_TK.shape[1], chosen_TK.device)
        return cls(
            token_N=token_N,
            choice_N=choice_N,
            chosen_N=chosen_TK.reshape(-1),
            expert_N=chosen_TK.masked_fill(unused, num_experts).view(-1),
            weight_N=weight_TK.masked_fill(unused, 0.0).view(-1),
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            valid_T=valid_T,
            num_experts=num_experts,
            num_sequences=num_sequences,
            top_k=chosen_TK.shape[1],
        )

    @property
    def num_tokens(self) -> int:
        if self.top_k is not None:
            return self.token_N.shape[0] // self.top_k
        rows = self.probs_TE if self.probs_TE is not None else self.valid_T
        assert rows is not None, "a router with neither probs_TE nor top_k must give valid_T"
        return rows.shape[0]

    @property
    def sequence_N(self) -> Tensor:
        """The sequence of each row."""
        return self.token_N // (self.num_tokens // self.num_sequences)

    @property
    def valid_N(self) -> Tensor | None:
        """False for a row whose token is padding; None if there is no padding."""
        return None if self.valid_T is None else self.valid_T[self.token_N]

    @property
    def has_choice_N(self) -> Tensor:
        """True for a row that has a chosen expert and whose token is not padding."""
        has_choice_N = self.chosen_N < self.num_experts
        return has_choice_N if self.valid_N is None else has_choice_N & self.valid_N

    @property
    def dropped_N(self) -> Tensor:
        """True for a row that has a chosen expert but that no expert computes."""
        return (self.expert_N == self.num_experts) & self.has_choice_N


def broken_rule(routing: Routing) -> str | None:
    """The first rule of a `Routing` that `routing` breaks; None if it breaks no rule."""
    return next((rule for rule, kept in _rules(routing) if not kept), None)


def _rules(routing: Routing) -> Iterator[tuple[str, bool]]:
    """Each rule and whether `routing` keeps it.

    Some rules can be checked only if the rules before them are kept.
    """
    experts, rows = routing.num_experts, len(routing.token_N)
    of_rows = (routing.choice_N, routing.chosen_N, routing.expert_N, routing.weight_N)
    yield "every tensor of rows has N entries", all(of_N.shape == (rows,) for of_N in of_rows)
    yield "tokens lie in 0..T-1", _within(routing.token_N, routing.num_tokens - 1)
    yield "chosen experts lie in 0..E", _within(routing.chosen_N, experts)
    yield "computing experts lie in 0..E", _within(routing.expert_N, experts)
    none_N = routing.expert_N == experts
    yield "a row that no expert computes weighs 0", not routing.weight_N[none_N].any()
    if routing.valid_N is not None:
        yield "padding is computed by no expert", bool(none_N[~routing.valid_N].all())
    if routing.top_k is not None:
        token_N, choice_N = token_rows(routing.num_tokens, routing.top_k, none_N.device)
        in_turn = token_N.equal(routing.token_N) and choice_N.equal(routing.choice_N)
        yield "row n is choice n % K of token n // K", in_turn
    yield "sequences are of equal length", routing.num_tokens % routing.num_sequences == 0
    if routing.probs_TE is not None:
        sum_T = routing.probs_TE.detach().float().sum(-1)
        # NaN does not break this rule: the trainer reports NaN and names its source.
        yield "each token's probabilities sum to 1", not bool(((sum_T - 1).abs() >= 1e-2).any())


def _within(of_N: Tensor, last: int) -> bool:
    return not of_N.numel() or (int(of_N.min()) >= 0 and int(of_N.max()) <= last)


def first_choices(routing: Routing) -> Routing:
    """The routing with only each token's first choice, which is what GShard's balance loss counts.

    `routing.top_k` must not be None: each token must have K consecutive rows.
    """
    assert routing.top_k is not None, "rows are not K for each token, in order"
    every = slice(None, None, routing.top_k)
    return replace(
        routing,
        token_N=routing.token_N[every],
        choice_N=routing.choice_N[every],
        chosen_N=routing.chosen_N[every],
        expert_N=routing.expert_N[every],
        weight_N=routing.weight_N[every],
        wave_N=None if routing.wave_N is None else routing.wave_N[every],
        top_k=1,
    )


def token_rows(num_tokens: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token_N, choice_N), where row n is choice n % top_k of token n // top_k."""
    row_N = torch.arange(num_tokens * top_k, device=device)
    return row_N // top_k, row_N % top_k
