"""The base classes of routers whose tokens choose experts.

Such a router scores the experts, chooses some of them for each token, applies the capacity rule,
and computes combine weights. The inner router of a hierarchical router has one gate, called a bank,
for each group of experts, and scores each row by the gate of one bank.

T tokens, D model width, E experts, K experts per token, N = T*K routed rows, B sequences, G banks,
R scored rows. If a token is scored by C banks, R is T*C and row r is token r // C; tensors named T
then have R rows. Without banks R is T.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mixtura.kernels.bank_linear import bank_linear
from mixtura.kernels.row_linear import row_linear
from mixtura.kernels.topk import topk, topk_naive
from mixtura.moe.bias import bias_step
from mixtura.moe.capacity import Admission, Candidates, Capacity
from mixtura.moe.routers.router import Router, RouterShape, RouterSpec
from mixtura.moe.routing import Level, Routing, token_rows
from mixtura.moe.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """Each token's K chosen experts, before capacity."""

    chosen_TK: Tensor
    """each token's experts, the best first; E for an unused row"""
    weight_TK: Tensor
    """the combine weights of the chosen experts, differentiable"""
    levels: tuple[Level, ...] = ()
    """one level for a flat router, several levels for a hierarchical router; empty if the router
    has no probabilities"""
    logits_TE: Tensor | None = None
    probs_TE: Tensor | None = None
    ranking_TE: Tensor | None = None
    """each token's preference for each expert, higher is better; None for a router that does not
    score all experts"""
    load_GE: Tensor | None = None
    """the smooth load of each bank's experts, differentiable; None if the router has no smooth
    load"""
    reweigh: Callable[[Tensor], Tensor] | None = None
    """computes weight_TK for other experts, for capacity rules that move rows to other experts"""
    abandoned_TK: Tensor | None = None
    """True for a row that takes room at its expert but is not computed, such as a second choice
    that GShard abandons"""
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """A router's scores of every expert for every token, in fp32, or float64 for float64 input."""

    logits_TE: Tensor
    """the gate's outputs before any activation"""
    score_TE: Tensor
    """the numbers from which combine weights are computed"""
    probs_TE: Tensor
    """the probabilities that balance losses use; each row sums to 1"""
    rounded: bool = field(default=False, kw_only=True)
    """whether the logits were computed in a dtype below fp32; see `LinearRouter.rounds`"""


class TokenRows(Router):
    """The base of routers that give each token `rows_per_token` rows and apply a capacity rule."""

    num_groups: int = 1
    """see `Routing.num_groups`"""
    groups_kept: int = 1

    def admit(self, choice: Choice, candidates: Candidates, capacity: Capacity | None) -> Admission:
        """The expert that computes each row; `capacity` replaces the router's own rule."""
        return (self.capacity if capacity is None else capacity).admit(candidates)

    def routed(self, choice: Choice, tokens: Tokens, capacity: Capacity | None) -> Routing:
        """The routing that follows from `choice` under the capacity rule."""
        candidates = Candidates(
            choice.chosen_TK,
            self.num_experts,
            tokens.num_sequences,
            tokens.valid_T,
            choice.ranking_TE,
        )
        with torch.no_grad():
            admission = self.admit(choice, candidates, capacity)
        return self._routing(choice, candidates, admission)

    def _routing(self, choice: Choice, candidates: Candidates, admission: Admission) -> Routing:
        chosen_TK, expert_TK = choice.chosen_TK, admission.expert_TK
        unweighted_TK = expert_TK == self.num_experts
        if choice.abandoned_TK is not None:
            unweighted_TK = unweighted_TK | choice.abandoned_TK
            expert_TK = expert_TK.masked_fill(choice.abandoned_TK, self.num_experts)
            chosen_TK = chosen_TK.masked_fill(choice.abandoned_TK, self.num_experts)
        weight_TK = choice.weight_TK
        if admission.moved:
            assert choice.reweigh is not None, "the config refuses policies that move rows"
            weight_TK = choice.reweigh(torch.where(unweighted_TK, choice.chosen_TK, expert_TK))
        token_N, choice_N = token_rows(len(chosen_TK), self.rows_per_token, chosen_TK.device)
        wave_TK = admission.wave_TK
        return Routing(
            token_N=token_N,
            choice_N=choice_N,
            chosen_N=chosen_TK.reshape(-1),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.masked_fill(unweighted_TK, 0.0).view(-1),
            logits_TE=choice.logits_TE,
            probs_TE=choice.probs_TE,
            valid_T=candidates.valid_T,
            num_experts=self.num_experts,
            num_sequences=candidates.num_sequences,
            top_k=self.rows_per_token,
            wave_N=None if wave_TK is None else wave_TK.reshape(-1),
            num_groups=self.num_groups,
            groups_kept=self.groups_kept,
            terms=self._terms(choice),
            levels=choice.levels if choice.probs_TE is None else (),
        )

    def _terms(self, choice: Choice) -> Mapping[str, Tensor]:
        terms = {"gate_N": choice.weight_TK.reshape(-1), **choice.terms}
        if choice.load_GE is not None:
            terms["load_E"] = choice.load_GE.view(-1)
        return terms


class TokenChoiceRouter(TokenRows):
    """The base of routers that choose each token's experts from the token's vector."""

    weighs_in_fp32: bool = False
    """whether evaluation in bf16 keeps combine weights, and their products with expert outputs, in
    fp32; some model families of transformers do this"""

    @abstractmethod
    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        """Choose each row's experts among the experts of the row's bank, before capacity."""

    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        x_TD = tokens.x_TD
        routing = self.routed(self.choose(x_TD, tokens.valid_T), tokens, capacity)
        if self.training or x_TD.itemsize >= torch.float32.itemsize:
            return routing
        dtype = torch.float32 if self.weighs_in_fp32 else x_TD.dtype
        weight_N = routing.weight_N.to(dtype).to(routing.weight_N.dtype)
        return replace(routing, weight_N=weight_N, product_dtype=dtype)


class LinearRouter(TokenChoiceRouter):
    """The base of routers with a gate of one (E, D) matrix, or of one such matrix for each bank.

    A subclass computes scores from logits (`score`), and combine weights from scores (`weigh`).
    """

    weight: nn.Parameter
    gate_bias: nn.Parameter | None
    bias: Tensor | None
    """the choosing bias; None if the router has none"""

    def __init__(
        self,
        config: RouterSpec,
        shape: RouterShape,
        capacity: Capacity,
        *,
        choosing_bias: bool = False,
    ) -> None:
        super().__init__(config, shape, capacity)
        rows = shape.banks * shape.num_experts
        self.weight = nn.Parameter(torch.empty(rows, shape.width))
        self.register_buffer(
            "bias", torch.zeros(rows, dtype=torch.float32) if choosing_bias else None
        )
        self.gate_bias = nn.Parameter(torch.zeros(rows)) if shape.gate_bias else None
        nn.init.normal_(self.weight, std=shape.width**-0.5)

    @abstractmethod
    def score(self, logits_TE: Tensor) -> Scores: ...

    @abstractmethod
    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """weight_TK of the given experts, differentiable; `expert_TK` is in 0..E-1."""

    def scores(self, x_TD: Tensor, bank_R: Tensor | None) -> Scores:
        """The scores of each row for all experts of the row's bank."""
        if self.rounds(x_TD):
            logits_TE = row_linear(x_TD, self.weight, self.gate_bias)
            return replace(self.score(logits_TE.float()), rounded=True)
        logits_TE = linear(x_TD, self.weight, bank_R, self.shape.banks)
        if self.gate_bias is not None:
            bias_GE = self.gate_bias.to(logits_TE.dtype).view(self.shape.banks, -1)
            logits_TE = logits_TE + (bias_GE[0] if bank_R is None else bias_GE[bank_R])
        return self.score(logits_TE)

    def rounds(self, x_TD: Tensor) -> bool:
        """Whether the logits are computed in the gate's dtype, such as bf16, instead of fp32.

        This is so in evaluation if the input and the gate are both in bf16, as in transformers.
        Training, and a router with several banks, compute logits in fp32.
        """
        low = x_TD.itemsize < torch.float32.itemsize and x_TD.dtype == self.weight.dtype
        return low and not self.training and self.shape.banks == 1

    def rank(self, scores: Scores, bank_R: Tensor | None) -> Tensor:
        """ranking_TE, without a gradient; the experts with the k largest values are chosen."""
        ranking_TE = scores.score_TE.detach()
        if self.bias is None:
            return ranking_TE
        bias_GE = self.bias.view(self.shape.banks, -1)
        return ranking_TE + (bias_GE[0] if bank_R is None else bias_GE[bank_R])

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        scores = self.scores(x_TD, bank_R)
        ranking_TE = self.rank(scores, bank_R)
        # Rounded logits are often equal. Among equal logits only torch.topk chooses as transformers
        # does.
        best = topk_naive if self.rounds(x_TD) else topk
        chosen_TK = best(ranking_TE, self.top_k)
        return self.chosen(scores, ranking_TE, chosen_TK, bank_R)

    def chosen(
        self, scores: Scores, ranking_TE: Tensor, chosen_TK: Tensor, bank_R: Tensor | None
    ) -> Choice:
        """The `Choice` of the experts in `chosen_TK`, with their weights."""
        token_T = torch.arange(len(chosen_TK), device=chosen_TK.device)
        return Choice(
            chosen_TK=chosen_TK,
            weight_TK=self.weigh(scores, chosen_TK),
            levels=(Level(token_T, bank_R, scores.probs_TE, self.shape.banks),),
            logits_TE=scores.logits_TE,
            probs_TE=scores.probs_TE,
            ranking_TE=ranking_TE,
            reweigh=partial(self.weigh, scores),
        )

    def step_bias(self, load_E: Tensor, rate: float) -> None:
        if self.bias is not None and rate > 0:
            load_GE, bias_GE = (of_E.view(self.shape.banks, -1) for of_E in (load_E, self.bias))
            self.bias.copy_(bias_step(bias_GE, load_GE, rate).view(-1))


def linear(x_TD: Tensor, weight_ED: Tensor, bank_R: Tensor | None = None, banks: int = 1) -> Tensor:
    """logits_TE in fp32, or in float64 for float64 input; autocast has no effect."""
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    x_TD, weight_ED = x_TD.to(dtype), weight_ED.to(dtype)
    if bank_R is None:
        return _LinearOutsideAutocast.apply(x_TD, weight_ED)
    return bank_linear(x_TD, weight_ED.view(banks, -1, x_TD.shape[1]), bank_R)


class _LinearOutsideAutocast(torch.autograd.Function):
    """x W^T in the dtype of the inputs.

    Autocast has no effect, even if `backward()` is called inside an autocast block.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        with torch.autocast(x_TD.device.type, enabled=False):
            return row_linear(x_TD, weight_ED)

    @staticmethod
    def backward(ctx, grad_TE: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weight_ED = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        with torch.autocast(grad_TE.device.type, enabled=False):
            grad_TD = grad_TE @ weight_ED if needs_x else None
            return grad_TD, grad_TE.T @ x_TD if needs_weight else None
