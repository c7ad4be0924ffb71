"""DeepSeek's gates: a token's experts are in few groups, so the token is sent to few devices.

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
    """The fields that the configs of DeepSeek-V2 and DeepSeek-V3 share."""

    groups: int = Field(default=8, ge=1)
    """the number of groups of consecutive experts, all of one size; a group is the experts of one
    device or node"""
    groups_kept: int = Field(ge=1)
    """the largest number of groups in which a token may have experts"""
    renormalise: bool
    """whether a token's weights are divided by their sum"""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """the factor by which all weights are multiplied"""

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
    """DeepSeek-V2: softmax, then top-k among the experts of the `groups_kept` best devices."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.003, "device": 0.05, "communication": 0.02, "z": 0.0}
    )
    kind: Literal["deepseek_v2"] = "deepseek_v2"
    groups_kept: int = Field(default=3, ge=1)
    renormalise: bool = False
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


@register_router(DeepSeekV2Config)
class DeepSeekV2(SoftmaxTopK):
    """s = softmax(W x); the M devices with the largest maximum of s are kept; among their experts
    the k largest s are chosen.

    This is DeepSeek-V2's device-limited routing (arXiv 2405.04434, section 2.2.2, with D = 8
    devices and M = 3). A device is a group of E/D consecutive experts; the largest s of its experts
    ranks the device. The weight of an expert is s times `scale`, as in eq. 21; under `renormalise`
    s is first divided by the sum of the k chosen s. There are three losses, whose weights are those
    of the paper. The loss between experts (eq. 23-25) equals our balance loss: the paper multiplies
    the number of tokens of an expert by E/(K T), and we multiply the expert's share of the rows,
    which is that number divided by K T, by E. The loss between devices is that of eq. 26-28, and
    the communication loss, which counts the tokens that each device receives, is that of eq. 29-31.

    Cost: that of `softmax_topk`, and a ranking of D numbers for each token. For any k a token is
    sent to at most M devices, which bounds the all-to-all. Choose it where experts are spread over
    devices; on one device choose `softmax_topk`, which lets a token choose among all experts.
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
    """DeepSeek-V3: sigmoid scores, a choosing bias, and top-k in the `groups_kept` best groups."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType(
        {"balance": 0.0001, "device": 0.0, "communication": 0.0, "z": 0.0}
    )
    kind: Literal["deepseek_v3"] = "deepseek_v3"
    groups_kept: int = Field(default=4, ge=1)
    group_top: int = Field(default=2, ge=1)
    """how many of a group's best scores are summed to rank the group"""
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
    """s = sigmoid(W x); among the experts of the M best groups the k largest s + b are chosen; the
    weights are s divided by the sum of the chosen s, times `scale`.

    This is the router of DeepSeek-V3 (arXiv 2412.19437, eq. 12-16) with the node-limited routing of
    its section 2.1.2. A group is the E/G consecutive experts of one node, and is ranked by the sum
    of its `group_top` largest s + b. The released model uses 2, while the paper says K/M; both are
    equal for the paper's K = 8 experts in M = 4 nodes. The bias b affects only which experts are
    chosen. After each optimizer step it rises by `balance.bias_rate` for an expert whose load is
    below the mean, and falls by the same amount for an expert whose load is above the mean. A small
    balance loss, E sum_e f_e P_e, is computed over each sequence (eq. 17-20); each token's s is
    first divided by its sum over all experts, and P is the mean of the result over the tokens. As
    in all our losses, f counts the experts that were chosen with bias and groups, while eq. 18
    counts the experts with the k largest s.

    Cost: that of `sigmoid_topk`, and a top-k of `group_top` in each group. A token is sent to at
    most M nodes. Choose it for many experts over several nodes, and where a balance loss costs
    quality; within one node choose `sigmoid_topk`, the same router without groups.
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
    """ranking_TE with -inf for all experts outside the `groups_kept` best groups.

    A group is ranked by the sum of its `group_top` largest values.
    """
    ranking_TGS = ranking_TE.unflatten(1, (num_groups, -1))
    score_TG = ranking_TGS.topk(group_top, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
    kept_TG.scatter_(1, topk(score_TG, groups_kept), value=True)
    return ranking_TGS.masked_fill(~kept_TG[..., None], -torch.inf).flatten(1)
