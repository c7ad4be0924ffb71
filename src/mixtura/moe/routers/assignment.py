"""Gates that balance by solving an assignment: BASE's, and Sinkhorn's plan.

T tokens, E experts, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.kernels.assignment import balanced_assignment
from mixtura.kernels.topk import topk
from mixtura.moe.capacity import Admission, Candidates, Capacity, Policy
from mixtura.moe.routers.router import LossName, RouterSpec, register_router
from mixtura.moe.routers.token_choice import Choice, LinearRouter, Scores

_EXACT = (
    "every expert gets exactly its share of the batch in training, so there is nothing to bound; "
    "choose policy=dropless, or kind=sinkhorn for a balance that is near and may be bounded"
)
_NO_LOSS: Mapping[LossName, float] = MappingProxyType({"balance": 0.0, "z": 0.0, "importance": 0.0})


class BaseConfig(RouterSpec):
    """BASE: in training the best assignment with equally many tokens an expert."""

    losses: ClassVar[Mapping[LossName, float]] = _NO_LOSS
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType(
        {"drop": _EXACT, "reroute": _EXACT, "wave": _EXACT}
    )
    causal_in_training: ClassVar[bool] = False
    kind: Literal["base"] = "base"
    epsilon: float = Field(default=0.01, ge=1e-6, lt=1)
    """how far a token's mean score may lie below the best, as a share of the scores' range"""
    accept_leak: bool = False
    """true allows training a language model with it, although it reads later tokens then"""

    @property
    def leaks_in_training(self) -> bool:
        return not self.accept_leak

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k != 1:
            raise ValueError(
                f"top_k={top_k} under router kind=base, which assigns one expert a token; "
                "set top_k=1, or kind=sinkhorn for more"
            )


@register_router(BaseConfig)
class Base(LinearRouter):
    """y = sigmoid(h_t . w_a) f_a(h_t), a = a_t: the balanced assignment in training, else argmax.

    BASE layers (Lewis et al. 2021, arXiv 2103.16716). In training a_t maximises
    sum_t h_t . w_{a_t}, and every expert gets exactly T/E of the batch's T tokens (of this rank's
    micro-batch; if E does not divide T some get one more; padding is not counted). Bertsekas'
    auction finds the assignment: its total lies below the best by at most `epsilon` of the scores'
    range a token, and usually by far less. In evaluation every token takes the expert with the
    largest h_t . w_e. There is no balance loss by default and no capacity rule. `chosen_N` is this
    greedy choice in training too, so that load shows the gate's own choices; `expert_N` is the
    assignment.

    The assignment leaks only in training: a token may lose an expert to another token of the batch,
    even a later one. Training a language model with it needs `accept_leak`.

    Cost: one product of E rows a token and one expert; in training an auction of some hundreds of
    rounds (some tenths of a second for 4,096 tokens and 64 experts on one core), each of which
    synchronises with a GPU. Choose it for one expert a token at exactly even load without a loss to
    tune, where the auction is cheap beside the experts; elsewhere `sinkhorn` is cheaper.
    """

    config: BaseConfig

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return scores.logits_TE.gather(1, expert_TK).sigmoid()

    def admit(self, choice: Choice, candidates: Candidates, capacity: Capacity | None) -> Admission:
        if capacity is not None or not self.training:
            return super().admit(choice, candidates, capacity)
        assert choice.logits_TE is not None, "a linear gate has logits"
        logits_TE, valid_T = choice.logits_TE, candidates.valid_T
        if valid_T is None:
            expert_T = balanced_assignment(logits_TE, self.config.epsilon)
        else:
            expert_T = torch.full_like(candidates.chosen_TK[:, 0], self.num_experts)
            expert_T[valid_T] = balanced_assignment(logits_TE[valid_T], self.config.epsilon)
        return Admission(expert_T[:, None], moved=True)


class SinkhornConfig(RouterSpec):
    """S-BASE: in training the experts with the largest shares of a balanced plan."""

    losses: ClassVar[Mapping[LossName, float]] = _NO_LOSS
    causal_in_training: ClassVar[bool] = False
    kind: Literal["sinkhorn"] = "sinkhorn"
    weight: Literal["softmax", "sigmoid"] = "softmax"
    """the function that makes weights of the chosen experts' logits"""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """divides logits before they are balanced; a lower one comes nearer to BASE's assignment"""
    iterations: int = Field(default=10, ge=1)
    """the largest number of passes over rows and columns"""
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """relative error of the experts' shares at which passes stop; null: all `iterations` run"""
    accept_leak: bool = False
    """true allows training a language model with it, although it reads later tokens then"""

    @property
    def leaks_in_training(self) -> bool:
        return not self.accept_leak


@register_router(SinkhornConfig)
class Sinkhorn(LinearRouter):
    """The K largest shares of each token in a plan with even sums; weights of the raw logits.

    S-BASE of Clark et al. 2022 (arXiv 2202.01169): BASE's assignment solved by Sinkhorn's
    iteration. In training the plan P = diag(u) exp(L / temperature) diag(v) of the logits L has
    sums of 1 over each token's experts and of T/E over each expert's tokens (T tokens of this
    rank's micro-batch, padding not counted), approximately after `iterations`, computed as
    logarithms in fp32. A token takes its K largest P_te, which are its K largest
    L_te / temperature + log v_e. In evaluation it takes the K largest L_te. Weights are softmax(L)
    or sigmoid(L) of the chosen experts; no gradient passes through the plan. The paper has only
    top-1 without a temperature; top-k, the temperature and the choice of weights are our additions.

    `chosen_N` is the greedy choice, as in evaluation, in training too, so that load shows the
    gate's own choices; `expert_N` follows the plan. The numbers of a plan's largest shares are only
    nearly even, so every capacity policy still applies, to the plan's choice.

    The plan leaks only in training: v depends on all tokens of the batch, later ones too. Training
    a language model with it needs `accept_leak`.

    Cost: one product of E rows a token and K experts; in training `iterations` passes over a T x E
    matrix. Choose it for BASE's balance at a small and fixed cost, or with more experts a token;
    not for exactly even load, which `base` gives, nor where training must not read later tokens.
    """

    config: SinkhornConfig

    def score(self, logits_TE: Tensor) -> Scores:
        return Scores(logits_TE, logits_TE, logits_TE.softmax(-1))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        if self.config.weight == "softmax":
            return scores.probs_TE.gather(1, expert_TK)
        return scores.logits_TE.gather(1, expert_TK).sigmoid()

    def admit(self, choice: Choice, candidates: Candidates, capacity: Capacity | None) -> Admission:
        if not self.training:
            return super().admit(choice, candidates, capacity)
        assert choice.logits_TE is not None, "a linear gate has logits"
        config = self.config
        log_TE = choice.logits_TE / config.temperature
        log_v_E = column_potentials(log_TE, candidates.valid_T, config.iterations, config.tolerance)
        plan_TE = log_TE + log_v_E
        planned = replace(candidates, chosen_TK=topk(plan_TE, self.top_k), ranking_TE=plan_TE)
        return replace(super().admit(choice, planned, capacity), moved=True)


def column_potentials(
    log_TE: Tensor, valid_T: Tensor | None, iterations: int, tolerance: float | None = None
) -> Tensor:
    """log v_E of Sinkhorn's plan diag(u) exp(log_TE) diag(v): sums of 1 by row, of T/E by column.

    Rows and columns are divided by their sums in turn, columns last (Sinkhorn and Knopp 1967). With
    a `tolerance` this ends once each column's sum is within that share of T/E, which synchronises
    with the device in each pass. Padding has no share; log v is 0 for padding alone.
    """
    num_tokens, num_experts = log_TE.shape
    if valid_T is not None:
        log_TE = log_TE.masked_fill(~valid_T[:, None], -torch.inf)
        log_share = valid_T.sum().to(log_TE.dtype).log() - torch.log(log_TE.new_tensor(num_experts))
    else:
        log_share = torch.log(log_TE.new_tensor(num_tokens / num_experts))
    log_v_E = log_TE.new_zeros(num_experts)
    for _ in range(iterations):
        plan_TE = (log_TE + log_v_E).log_softmax(-1)
        if valid_T is not None:
            # A row of padding has become NaN.
            plan_TE = plan_TE.masked_fill(~valid_T[:, None], -torch.inf)
        excess_E = plan_TE.logsumexp(0) - log_share
        if tolerance is not None and bool((excess_E.exp() - 1).abs().amax() <= tolerance):
            break
        log_v_E = (log_v_E - excess_E).nan_to_num(0.0, 0.0, 0.0)
    return log_v_E
