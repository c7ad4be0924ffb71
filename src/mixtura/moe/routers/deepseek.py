"""DeepSeek's gates: a token's experts lie in a few groups, so that it is sent to few devices.

T tokens, E experts, K experts per token, G groups of S = E/G consecutive experts, M groups kept.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.kernels.topk import topk
from mixtura.moe.capacity import Capacity
from mixtura.moe.routers.router import (
    LossName,
    RouterShape,
    RouterSpec,
    refuse_single_renormalised,
    register_router,
)
from mixtura.moe.routers.sigmoid import SigmoidTopK, SigmoidTopKConfig
from mixtura.moe.routers.softmax import SoftmaxTopK, SoftmaxTopKConfig
from mixtura.moe.routers.token_choice import Scores


class GroupedSpec(RouterSpec):
    """The keys that both versions share."""

    groups: int = Field(default=8, ge=1)
    """number of groups of equally many consecutive experts, each for a device or a node"""
    groups_kept: int = Field(ge=1)
    """largest number of groups that a token may have experts in"""
    renormalise: bool
    """whether a token's weights are divided by their sum"""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """factor of all weights"""

    def check(self, num_experts: int, top_k: int) -> None:
        if num_experts % self.groups:
            raise ValueError(
                f"num_experts={num_experts} must be a multiple of router.groups={self.groups}; "
                "change either"
            )
        if self.groups_kept > self.groups:
            raise ValueError(
                f"router.groups_kept={self.groups_kept} must lie in 1..{self.groups}, "
                "router.groups; lower it"
            )
        size = num_experts // self.groups
        if top_k > self.groups_kept * size:
            raise ValueError(
                f"top_k={top_k} must lie in 1..{self.groups_kept * size}, the experts of "
                f"router.groups_kept={self.groups_kept} groups of {size}; raise groups_kept or "
                "lower top_k"
            )

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        if self.renormalise:
            refuse_single_renormalised(top_k, self.name, "set renormalise=false or top_k above 1")


class DeepSeekV2Config(GroupedSpec):
    """DeepSeek-V2: softmax, top-k among the experts of the `groups_kept` best devices."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.003, "device": 0.05, "communication": 0.02, "z": 0.0}
    )
    kind: Literal["deepseek_v2"] = "deepseek_v2"
    groups_kept: int = Field(default=3, ge=1)
    renormalise: bool = False
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


@register_router(DeepSeekV2Config)
class DeepSeekV2(SoftmaxTopK):
    """s = softmax(W x); keep the M devices with the best expert each; the k largest s among theirs.

    DeepSeek-V2's device-limited routing (arXiv 2405.04434, section 2.2.2; D = 8, M = 3). A device
    is a group of E/D consecutive experts, ranked by the highest s in it. The weight is s times
    `scale`, as in eq. 21; `renormalise` divides by the sum of the k weights first. Three losses
    have the paper's weights: between experts (eq. 23-25, our balance loss: E/(K T) times a count is
    E times its share), between devices (eq. 26-28), and of what each device receives (eq. 29-31).

    Cost: that of softmax top-k, and a ranking of D numbers; a token reaches at most M devices for
    any k, which bounds the all-to-all. Choose it where experts are spread over devices; on one
    device `softmax_topk` has a wider choice.
    """

    def __init__(self, config: DeepSeekV2Config, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(SoftmaxTopKConfig(renormalise=config.renormalise), shape, capacity)
        self.scale = config.scale
        self.num_groups, self.groups_kept = config.groups, config.groups_kept

    def rank(self, scores: Scores, bank_R: Tensor | None) -> Tensor:
        ranking_TE = super().rank(scores, bank_R)
        return in_best_groups(ranking_TE, self.num_groups, self.groups_kept, group_top=1)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return super().weigh(scores, expert_TK) * self.scale


class DeepSeekV3Config(GroupedSpec):
    """DeepSeek-V3: sigmoid, a choosing bias, top-k among the experts of `groups_kept` groups."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.0001, "device": 0.0, "communication": 0.0, "z": 0.0}
    )
    kind: Literal["deepseek_v3"] = "deepseek_v3"
    groups_kept: int = Field(default=4, ge=1)
    group_top: int = Field(default=2, ge=1)
    """number of a group's best scores whose sum ranks the group"""
    renormalise: bool = True
    scale: float = Field(default=2.5, gt=0, allow_inf_nan=False)

    def check(self, num_experts: int, top_k: int) -> None:
        super().check(num_experts, top_k)
        size = num_experts // self.groups
        if self.group_top > size:
            raise ValueError(
                f"router.group_top={self.group_top} must lie in 1..{size}, the experts of a group; "
                "lower it or router.groups"
            )


@register_router(DeepSeekV3Config)
class DeepSeekV3(SigmoidTopK):
    """s = sigmoid(W x); the k largest s + b in the M best groups; s over their sum, times `scale`.

    DeepSeek-V3 (arXiv 2412.19437, eq. 12-16; groups: section 2.1.2, node-limited routing). A group
    is a node of E/G consecutive experts. It is ranked by the sum of its `group_top` highest s + b:
    2 in the released model, where the paper says K/M (equal at its 8 experts in 4 nodes). The bias
    b affects only the choice: after each optimizer step it rises by `balance.bias_rate` for an
    expert under the mean load, and falls by as much for one above it. A small balance loss is taken
    over each sequence (eq. 17-20), with P from s over its sum; f counts the chosen experts, with
    bias and groups, as in all our losses, where eq. 18 counts the k largest s.

    Cost: that of sigmoid top-k, and a top-2 in each group; a token reaches at most M nodes. Choose
    it for many experts over several nodes, and where a balance loss costs quality; in one node
    `sigmoid_topk` is the same without groups.
    """

    def __init__(self, config: DeepSeekV3Config, shape: RouterShape, capacity: Capacity) -> None:
        ungrouped = SigmoidTopKConfig(renormalise=config.renormalise, scale=config.scale)
        super().__init__(ungrouped, shape, capacity)
        self.group_top = config.group_top
        self.num_groups, self.groups_kept = config.groups, config.groups_kept

    def rank(self, scores: Scores, bank_R: Tensor | None) -> Tensor:
        ranking_TE = super().rank(scores, bank_R)
        return in_best_groups(ranking_TE, self.num_groups, self.groups_kept, self.group_top)


def in_best_groups(ranking_TE: Tensor, num_groups: int, groups_kept: int, group_top: int) -> Tensor:
    """ranking_TE, with -inf outside the groups whose `group_top` best experts have largest sums."""
    ranking_TGS = ranking_TE.unflatten(1, (num_groups, -1))
    score_TG = ranking_TGS.topk(group_top, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
    kept_TG.scatter_(1, topk(score_TG, groups_kept), value=True)
    return ranking_TGS.masked_fill(~kept_TG[..., None], -torch.inf).flatten(1)
