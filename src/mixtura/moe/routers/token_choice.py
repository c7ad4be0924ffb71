"""What every router shares in which tokens choose experts: score, choose, admit, weigh.

T tokens, D model width, E experts, K experts per token, N = T*K routed rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mixtura.kernels.topk import topk
from mixtura.moe.capacity import Capacity
from mixtura.moe.routing import Routing, token_rows


@dataclass(frozen=True, slots=True)
class Scores:
    """A router's view of every expert for every token, in fp32 (or float64) whatever the model."""

    logits_TE: Tensor
    """before any activation"""
    score_TE: Tensor
    """what combine weights are made of"""
    probs_TE: Tensor
    """each row sums to 1; balance losses read it"""


class TokenChoiceRouter(nn.Module, ABC):
    """A gate of one (E, D) matrix; a subclass says how logits become scores, scores weights."""

    weight: nn.Parameter
    bias: Tensor | None

    def __init__(
        self,
        width: int,
        num_experts: int,
        top_k: int,
        capacity: Capacity,
        *,
        choosing_bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.capacity = capacity
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        # In fp32 for good: steps of 1e-3 vanish in bf16 beside a bias of 1.
        self.register_buffer(
            "bias", torch.zeros(num_experts, dtype=torch.float32) if choosing_bias else None
        )
        nn.init.normal_(self.weight, std=width**-0.5)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `bfloat16` and their like pass here; the bias takes the device, not the dtype."""
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None and self.bias is not None and self.bias.dtype != bias.dtype:
            self.bias = bias.to(self.bias.device)
        return self

    @abstractmethod
    def score(self, logits_TE: Tensor) -> Scores: ...

    @abstractmethod
    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """weight_TK of the given experts, differentiable; `expert_TK` lies in 0..E-1."""

    def gate(self, x_TD: Tensor) -> Tensor:
        """logits_TE in fp32 (float64 for float64 input), outside any autocast."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        return _LinearOutsideAutocast.apply(x_TD.to(dtype), self.weight.to(dtype))

    def forward(
        self,
        x_TD: Tensor,
        valid_T: Tensor | None = None,
        num_sequences: int = 1,
        capacity: Capacity | None = None,
    ) -> Routing:
        """Route T tokens. `capacity` stands in for the router's own rule (generation: Dropless)."""
        scores = self.score(self.gate(x_TD))
        with torch.no_grad():
            ranking_TE = scores.score_TE if self.bias is None else scores.score_TE + self.bias
            chosen_TK = topk(ranking_TE, self.top_k)
            rule = self.capacity if capacity is None else capacity
            expert_TK = rule.admit(ranking_TE, chosen_TK, valid_T, num_sequences)
            lost_TK = expert_TK == self.num_experts
        weight_TK = self.weigh(scores, torch.where(lost_TK, chosen_TK, expert_TK))
        token_N, choice_N = token_rows(x_TD.shape[0], self.top_k, x_TD.device)
        return Routing(
            token_N=token_N,
            choice_N=choice_N,
            chosen_N=chosen_TK.reshape(-1),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.masked_fill(lost_TK, 0.0).view(-1),
            logits_TE=scores.logits_TE,
            probs_TE=scores.probs_TE,
            valid_T=valid_T,
            num_experts=self.num_experts,
            num_sequences=num_sequences,
            top_k=self.top_k,
        )


class _LinearOutsideAutocast(torch.autograd.Function):
    """F.linear in the inputs' dtype, also where `backward()` is called inside an autocast block."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD, weight_ED)

    @staticmethod
    def backward(ctx, grad_TE: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weight_ED = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        with torch.autocast(grad_TE.device.type, enabled=False):
            grad_TD = grad_TE @ weight_ED if needs_x else None
            return grad_TD, grad_TE.T @ x_TD if needs_weight else None


def refuse_single_renormalised(top_k: int, kind: str, remedy: str) -> None:
    """Raises ValueError for top_k=1: one renormalised weight is the constant 1."""
    if top_k == 1:
        raise ValueError(
            f"top_k=1 under router kind={kind} makes every combine weight the constant 1, so the "
            f"task gives the router no gradient; {remedy}"
        )
