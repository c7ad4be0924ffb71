"""`Routing`, the one value that a router returns for its tokens.

T tokens, E experts, K experts per token, N routed rows, B sequences of S tokens each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a hierarchical router: gates side by side, each over S choices.

    R rows, each of one gate: at the second level a token has a row for each group that it is sent
    to. Choice s of gate g has number g * S + s in the level. Every choice stands for equally many
    consecutive experts.
    """

    token_R: Tensor
    """row -> token, int64"""
    bank_R: Tensor | None
    """row -> its gate; None where there is one gate"""
    probs_RS: Tensor
    """row -> the gate's probabilities, which sum to 1"""
    banks: int = 1
    """number of gates"""
    used_R: Tensor | None = None
    """False where the token abandoned the gate's group; None where no token did"""


rules_are_checked = False
"""Whether a Routing checks its rules when it is made, which syncs the device; tests set it."""


@dataclass(frozen=True, slots=True)
class Routing:
    """A router's decision for T tokens, as N rows: T*K for token choice, E*C for expert choice.

    Load, balance losses, bias updates and alarms read `chosen_N`, the router's own choice: after
    rerouting, a collapsed router would look even. Drops and work per device read `expert_N`.
    """

    token_N: Tensor
    """row -> token, int64"""
    choice_N: Tensor
    """row -> rank of the choice; 0 is the token's first expert"""
    chosen_N: Tensor
    """row -> the chosen expert, before capacity; num_experts for an unused row"""
    expert_N: Tensor
    """row -> the expert that computes it; num_experts where none does, and for padding"""
    weight_N: Tensor
    """row -> combine weight, differentiable; 0 for a row that no expert computes"""
    logits_TE: Tensor | None
    """before any activation (the z-loss needs them); None for hash and hierarchical routers"""
    probs_TE: Tensor | None
    """the router's probabilities; each row sums to 1; None as for logits"""
    valid_T: Tensor | None
    """False for padding; None where there is none"""
    num_experts: int
    num_sequences: int = 1
    """the T tokens are this many sequences of equal length, one after another"""
    top_k: int | None = None
    """K where row n is choice n % K of token n // K; None where rows come in another order"""
    wave_N: Tensor | None = None
    """row -> the pass in which its expert computes it; None for a single pass"""
    product_dtype: torch.dtype | None = None
    """the dtype to which each weight times its expert's output is rounded before a token's sum, as
    transformers does in bf16; None where only the sum is rounded"""
    num_groups: int = 1
    """groups of equally many consecutive experts, each of which may stand for a device"""
    groups_kept: int = 1
    """the largest number of groups in which a token has experts"""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """a router's own quantities: `gate_N`, weights before capacity, where they differ; `load_E`,
    smooth load; others by name"""
    levels: tuple[Level, ...] = ()
    """of a hierarchical router, the outermost first; empty where `probs_TE` covers all"""

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
        """Token choice in one line: each token's K experts, best first, and their weights.

        `chosen_TK` is E for an unused row. No expert computes a row of padding, nor a row that is
        True in `dropped_TK`; their weights become 0.
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
        """row -> sequence"""
        return self.token_N // (self.num_tokens // self.num_sequences)

    @property
    def valid_N(self) -> Tensor | None:
        """row -> False where its token is padding; None where there is no padding"""
        return None if self.valid_T is None else self.valid_T[self.token_N]

    @property
    def has_choice_N(self) -> Tensor:
        """row -> True where it has a chosen expert and its token is no padding"""
        has_choice_N = self.chosen_N < self.num_experts
        return has_choice_N if self.valid_N is None else has_choice_N & self.valid_N

    @property
    def dropped_N(self) -> Tensor:
        """row -> True where it has a chosen expert, and no expert computes it"""
        return (self.expert_N == self.num_experts) & self.has_choice_N


def broken_rule(routing: Routing) -> str | None:
    """The first rule of `Routing` that this routing breaks; None where it keeps all."""
    return next((rule for rule, kept in _rules(routing) if not kept), None)


def _rules(routing: Routing) -> Iterator[tuple[str, bool]]:
    """Each rule, and whether it is kept; a later rule may need those before it."""
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
        # Values that are not finite are left to the trainer, which names their source.
        yield "each token's probabilities sum to 1", not bool(((sum_T - 1).abs() >= 1e-2).any())


def _within(of_N: Tensor, last: int) -> bool:
    return not of_N.numel() or (int(of_N.min()) >= 0 and int(of_N.max()) <= last)


def first_choices(routing: Routing) -> Routing:
    """Only each token's first choice, as GShard's loss counts them; for token choice."""
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
    """token_N and choice_N of token choice: row n is choice n % top_k of token n // top_k."""
    row_N = torch.arange(num_tokens * top_k, device=device)
    return row_N // top_k, row_N % top_k
