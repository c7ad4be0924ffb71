"""Gates that assign all tokens of a batch together, so that the load is even: BASE and S-BASE.

BASE assigns each token to one expert. S-BASE computes a plan, which gives each expert a share of
each token, and chooses each token's experts by these shares.

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
    """BASE: in training all experts get equally many tokens, by the best-scoring assignment."""

    losses: ClassVar[Mapping[LossName, float]] = _NO_LOSS
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType(
        {"drop": _EXACT, "reroute": _EXACT, "wave": _EXACT}
    )
    causal_in_training: ClassVar[bool] = False
    kind: Literal["base"] = "base"
    epsilon: float = Field(default=0.01, ge=1e-6, lt=1)
    """how far the mean score of the assignment may be below that of the best assignment, as a share
    of the range of all scores"""
    accept_leak: bool = False
    """whether a language model may be trained with the router, which reads later tokens in
    training"""

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
    """y = sigmoid(h_t . w_a) f_a(h_t); expert a is a_t of the balanced assignment in training, and
    the expert with the largest h_t . w_a in evaluation.

    BASE layers are from Lewis et al. 2021 (arXiv 2103.16716). In training the assignment a_t
    maximises sum_t h_t . w_{a_t} under the condition that every expert gets exactly T/E tokens. The
    T tokens are those of this rank's micro-batch without padding; if E does not divide T, some
    experts get one token more. Bertsekas' auction finds the assignment. The mean score of the
    assignment found is below the best mean score by at most `epsilon` times the range of all
    scores, and usually by far less. By default there is no balance loss, and there is no capacity
    rule. In training `expert_N` is the assigned expert, but `chosen_N` is the expert with the
    largest score, so that the load shows the gate's own choices.

    The router reads later tokens, but only in training: whether a token gets its best expert
    depends on all tokens of the batch, later tokens included. Training a language model with it
    needs `accept_leak`.

    Cost: each token is multiplied with the gate's E rows and computed by one expert. Training runs
    an auction of some hundreds of rounds, each of which waits for a GPU; on one core an auction of
    4,096 tokens and 64 experts takes some tenths of a second. Choose it for one expert a token at
    exactly even load without a loss to tune, where the auction is cheap beside the experts;
    otherwise choose `sinkhorn`, which is cheaper.
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
    """S-BASE: in training a token gets the experts with its largest shares in a balanced plan."""

    losses: ClassVar[Mapping[LossName, float]] = _NO_LOSS
    causal_in_training: ClassVar[bool] = False
    kind: Literal["sinkhorn"] = "sinkhorn"
    weight: Literal["softmax", "sigmoid"] = "softmax"
    """the function that computes weights from the chosen experts' logits"""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """the number by which logits are divided before they are balanced; a lower temperature gives a
    plan nearer to BASE's assignment"""
    iterations: int = Field(default=10, ge=1)
    """the largest number of passes; a pass scales the rows of the plan, then its columns"""
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """passes end when the relative error of every expert's share is at most this; null for always
    `iterations` passes"""
    accept_leak: bool = False
    """whether a language model may be trained with the router, which reads later tokens in
    training"""

    @property
    def leaks_in_training(self) -> bool:
        return not self.accept_leak


@register_router(SinkhornConfig)
class Sinkhorn(LinearRouter):
    """In training a token gets the experts with its K largest shares in a plan of even load, and in
    evaluation the experts with its K largest logits; the weights are computed from the logits.

    S-BASE of Clark et al. 2022 (arXiv 2202.01169) solves BASE's assignment approximately, by
    Sinkhorn's iteration. For the logits L the plan is P = diag(u) exp(L / temperature) diag(v).
    After `iterations` passes the sum of P is near 1 for each token, and near T/E for each expert,
    where T counts the tokens of this rank's micro-batch without padding. The plan is computed as
    logarithms in fp32. A token gets the experts with its K largest P_te, which are also those with
    the K largest L_te / temperature + log v_e. The weights are softmax(L) or sigmoid(L) of the
    chosen experts. No gradient passes through the plan. The paper has only top-1, without a
    temperature; top-k, the temperature and the choice of the weight function are our additions.

    In training `expert_N` follows the plan, but `chosen_N` are the experts with the largest logits,
    so that the load shows the gate's own choices. Choosing whole experts by the largest shares
    makes the load only nearly even, so every capacity policy may be set; it is applied to the
    plan's choices.

    The router reads later tokens, but only in training: v depends on all tokens of the batch.
    Training a language model with it needs `accept_leak`.

    Cost: each token is multiplied with the gate's E rows and computed by K experts. Training makes
    `iterations` passes over a T x E matrix. Choose it for BASE's balance at a small and fixed cost,
    or with more experts a token; do not choose it where load must be exactly even, which `base`
    gives, or where training must not read later tokens.
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
    """log v_E of Sinkhorn's plan diag(u) exp(log_TE) diag(v): rows sum to 1, columns to T/E.

    Each pass scales every row to the sum 1, then every column to the sum T/E (Sinkhorn and Knopp
    1967). With a `tolerance`, passes end when the relative error of each column's sum is at most
    `tolerance`; this check waits for the device in each pass. Padding is not a part of the plan. If
    all tokens are padding, log v is 0.
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
            # log_softmax makes NaN of a row of padding, in which all numbers are -inf.
            plan_TE = plan_TE.masked_fill(~valid_T[:, None], -torch.inf)
        excess_E = plan_TE.logsumexp(0) - log_share
        if tolerance is not None and bool((excess_E.exp() - 1).abs().amax() <= tolerance):
            break
        log_v_E = (log_v_E - excess_E).nan_to_num(0.0, 0.0, 0.0)
    return log_v_E
