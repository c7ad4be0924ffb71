"""Expert choice: each expert takes its best tokens, and a token may have no expert or many.

T tokens, D model width, E experts. Experts choose separately in each of G groups of S tokens, such
as sequences. An expert takes C tokens of each group, so there are N = G*E*C rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from mixtura.moe.capacity import Capacity, Dropless, Policy, places
from mixtura.moe.routers.router import LossName, Router, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.token_choice import linear
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

Count = TypeVar("Count", int, Tensor)

_BUILT_IN = (
    "capacity is built in, as each expert takes as many tokens as its share; "
    "choose policy=dropless, and change top_k for more or fewer"
)
BUILT_IN_CAPACITY: Mapping[Policy, str] = MappingProxyType(
    {"drop": _BUILT_IN, "reroute": _BUILT_IN, "wave": _BUILT_IN}
)


class ExpertChoiceConfig(RouterSpec):
    """Expert choice: each expert takes its best tokens of a sequence, or of the whole batch."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"z": 0.0, "importance": 0.0})
    refused_policies: ClassVar[Mapping[Policy, str]] = BUILT_IN_CAPACITY
    causal: ClassVar[bool] = False
    causal_in_training: ClassVar[bool] = False
    kind: Literal["expert_choice"] = "expert_choice"
    scope: Literal["sequence", "batch"] = "sequence"
    """the tokens among which an expert chooses"""
    accept_leak: bool = False
    """whether a language model may have the router, which reads later tokens"""

    @property
    def leaks(self) -> bool:
        return not self.accept_leak


@register_router(ExpertChoiceConfig)
class ExpertChoice(Router):
    """S = softmax(x W) over experts; expert i takes the k tokens with the largest S[:, i].

    This is G, I = TopK(S^T, k) of Zhou et al. 2022 (arXiv 2202.09368, section 3), with k = n c / e,
    rounded up, for n tokens and e experts. c is the mean number of experts per token, the layer's
    top_k. The combine weights are S. Load is even by construction, so the router needs no balance
    loss and no capacity rule. A token may be taken by any number of experts; if no expert takes it,
    the residual connection carries it. Under `scope: sequence` experts choose within each sequence,
    under `scope: batch` among all tokens. Padding is never taken and is not counted in n.

    The router reads later tokens, in training and in evaluation. Whether an expert takes a token
    depends on the tokens that compete with it: later tokens of its sequence, and under
    `scope: batch` also tokens of other sequences. A language model that is trained with it reads a
    little of its own future, which does not exist in generation. When text is generated one token
    at a time, the token has no competitors, so every expert takes it and the model behaves
    differently. Decoders refuse the router; `expert_threshold` is the router for them.

    Cost: each token is multiplied with the gate's E rows. Each of the E experts selects k of n
    tokens, and n c rows are computed. Choose it for encoders, vision and other models that read all
    tokens at once; for language models choose `expert_threshold`.
    """

    config: ExpertChoiceConfig

    def __init__(self, config: ExpertChoiceConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        self.weight = nn.Parameter(torch.empty(shape.num_experts, shape.width))
        nn.init.normal_(self.weight, std=shape.width**-0.5)

    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        refuse_capacity(capacity, self.config)
        logits_TE = linear(tokens.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        groups = tokens.num_sequences if self.config.scope == "sequence" else 1
        taken = best_tokens(probs_TE, tokens.valid_T, groups, self.top_k)
        weight_N = taken.of(probs_TE)
        return Routing(
            token_N=taken.token_N,
            choice_N=taken.choice_N,
            chosen_N=taken.expert_N,
            expert_N=taken.expert_N,
            weight_N=weight_N,
            logits_TE=logits_TE,
            probs_TE=probs_TE,
            valid_T=tokens.valid_T,
            num_experts=self.num_experts,
            num_sequences=tokens.num_sequences,
        )


def refuse_capacity(capacity: Capacity | None, config: RouterSpec) -> None:
    """Raises ValueError for any rule but `Dropless`, in a router with a built-in capacity."""
    if capacity is not None and not isinstance(capacity, Dropless):
        raise ValueError(f"capacity={capacity} under router kind={config.name}: {_BUILT_IN}")


@dataclass(frozen=True, slots=True)
class Taken:
    """The tokens that experts took, as rows sorted by group, by expert, then by falling score."""

    token_N: Tensor
    choice_N: Tensor
    """the rank of the row's expert among the experts that took its token; 0 for the largest
    score"""
    expert_N: Tensor
    """the expert of each row; E for an unused row, which occurs if a group contains padding"""

    def of(self, score_TE: Tensor) -> Tensor:
        """score_N: the score of each row's token and expert, differentiable; 0 for unused rows."""
        num_experts = score_TE.shape[1]
        unused_N = self.expert_N == num_experts
        place_N = self.token_N * num_experts + self.expert_N.masked_fill(unused_N, 0)
        return score_TE.reshape(-1)[place_N].masked_fill(unused_N, 0.0)


def best_tokens(score_TE: Tensor, valid_T: Tensor | None, groups: int, mean_experts: int) -> Taken:
    """Each expert takes its ceil(n c / E) best tokens of the n valid tokens of a group.

    c is `mean_experts`. Scores must be above -1. The result has as many rows as without padding, so
    that the number of rows depends only on shapes. Rows for which padding leaves no token are
    unused.
    """
    num_tokens, num_experts = score_TE.shape
    size = num_tokens // groups
    score_GES = score_TE.detach().view(groups, size, num_experts).transpose(1, 2)
    count_G = score_TE.new_full((groups,), size, dtype=torch.int64)
    if valid_T is not None:
        valid_GS = valid_T.view(groups, size)
        score_GES = score_GES.masked_fill(~valid_GS[:, None], -1.0)
        count_G = valid_GS.sum(1)
    best = score_GES.topk(rows_each(size, mean_experts, num_experts), dim=2)
    first_G = torch.arange(groups, device=score_TE.device) * size
    token_GEC = best.indices + first_G[:, None, None]
    expert_GEC = torch.arange(num_experts, device=score_TE.device)[:, None].expand_as(token_GEC)
    rank_C = torch.arange(token_GEC.shape[2], device=score_TE.device)
    unused_GC = rank_C >= rows_each(count_G, mean_experts, num_experts)[:, None]
    expert_GEC = expert_GEC.masked_fill(unused_GC[:, None], num_experts)
    score_GEC = best.values.masked_fill(unused_GC[:, None], -1.0)
    token_N = token_GEC.reshape(-1)
    choice_N = _rank_for_token(score_GEC.reshape(-1), token_N, num_tokens)
    return Taken(token_N, choice_N, expert_GEC.reshape(-1))


def rows_each(count: Count, mean_experts: int, num_experts: int) -> Count:
    """ceil(n c / E): how many of n tokens an expert takes if a token has c experts on average."""
    return (count * mean_experts + num_experts - 1) // num_experts


def _rank_for_token(score_N: Tensor, token_N: Tensor, num_tokens: int) -> Tensor:
    """rank_N: the number of rows of the same token that have a larger score."""
    order_N = score_N.argsort(descending=True, stable=True)
    place_N = places(token_N[order_N][None], num_tokens)[0]
    return torch.empty_like(place_N).scatter_(0, order_N, place_N)
