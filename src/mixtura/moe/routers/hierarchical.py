"""A hierarchical router: an outer gate chooses groups of experts, and inner gates choose experts.

T tokens, D model width, E experts, G groups of S = E/G experts. A token takes O groups and I
experts in each group, so K = O*I. The outer gate scores R rows. These are the T tokens or, if this
router is the inner router of another hierarchical router, the Q rows of that router. The inner
gates score Q = R*O rows: one for each of the O groups of each of the R rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mixtura.moe.capacity import Capacity, Dropless, Policy
from mixtura.moe.routers.router import LossName, RouterShape, RouterSpec, register_router
from mixtura.moe.routers.router_field import InnerRouter, OuterRouter
from mixtura.moe.routers.token_choice import Choice, TokenChoiceRouter
from mixtura.moe.routing import Level
from mixtura.shapes.ledger import Saved, Weight, weights_of

_NO_RANKING = (
    "a hierarchical router ranks the experts of the chosen groups alone, so it has no next-best "
    "expert; choose policy=drop or policy=wave"
)


class HierarchicalConfig(RouterSpec):
    """An outer router chooses groups of experts, and an inner router chooses experts in each group.

    `inner` may be hierarchical too, to any depth. A token has top_k / outer_top_k experts in each
    of its groups.
    """

    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType({"reroute": _NO_RANKING})
    kind: Literal["hierarchical"] = "hierarchical"
    groups: int = Field(ge=1)
    """the number of groups of consecutive experts, all of one size"""
    outer_top_k: int = Field(default=1, ge=1)
    """the number of groups of a token; the layer's top_k must be a multiple of it"""
    outer: OuterRouter
    """the router that chooses groups"""
    inner: InnerRouter
    """the router that chooses experts in a group; each group has its own gate"""

    def served(self) -> Mapping[LossName, float]:
        """Shazeer's Importance_H and Load_H if both gates are noisy, otherwise a balance loss."""
        noisy = all("load" in part.served() for part in (self.outer, self.inner))
        devices: Mapping[LossName, float] = {"device": 0.0, "communication": 0.0}
        if noisy:
            return {"importance": 0.1, "load": 0.1, "balance": 0.0, **devices}
        return {"balance": 0.01, "importance": 0.0, **devices}

    def check(self, num_experts: int, top_k: int) -> None:
        if num_experts % self.groups:
            raise ValueError(
                f"num_experts={num_experts} must be a multiple of router.groups={self.groups}"
            )
        if top_k % self.outer_top_k:
            raise ValueError(
                f"top_k={top_k} must be a multiple of router.outer_top_k={self.outer_top_k}"
            )
        inner_top_k = top_k // self.outer_top_k
        for name, given, bound in (
            ("outer_top_k", self.outer_top_k, self.groups),
            ("top_k / outer_top_k", inner_top_k, num_experts // self.groups),
        ):
            if given > bound:
                raise ValueError(
                    f"router.{name}={given} must lie in 1..{bound}, of which a token chooses"
                )
        if self.groups > 1:
            self.outer.check(self.groups, self.outer_top_k)
        if num_experts > self.groups:
            self.inner.check(num_experts // self.groups, inner_top_k)

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        # A gate with a single choice has the constant weight 1, and needs no gradient.
        if self.groups > 1:
            self.outer.check_gradient(self.groups, self.outer_top_k)
        if num_experts > self.groups:
            self.inner.check_gradient(num_experts // self.groups, top_k // self.outer_top_k)

    def tensors(self, shape: RouterShape, prefix: str) -> Iterator[Saved]:
        yield from self.outer.tensors(self.outer_shape(shape), f"{prefix}outer.")
        share = Fraction(self.outer_top_k, self.groups)
        for one in self.inner.tensors(self.inner_shape(shape), f"{prefix}inner."):
            yield replace(one, active=one.active * share) if isinstance(one, Weight) else one

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        return weights_of(self.tensors(shape, prefix))

    def outer_shape(self, shape: RouterShape) -> RouterShape:
        return replace(shape, num_experts=self.groups, top_k=self.outer_top_k)

    def inner_shape(self, shape: RouterShape) -> RouterShape:
        return replace(
            shape,
            num_experts=shape.num_experts // self.groups,
            top_k=shape.top_k // self.outer_top_k,
            banks=shape.banks * self.groups,
        )


@register_router(HierarchicalConfig)
class Hierarchical(TokenChoiceRouter):
    """y = sum_i sum_j G_outer(x)_i G_i(x)_j E_ij(x) (Shazeer 2017, arXiv 1701.06538, appendix B).

    Expert j of group i, E_ij, has the number i*S + j. A group may be the experts of one device or
    machine. Only the gates of the chosen groups are computed. If both gates are noisy, `load_E` of
    the routing's terms is Load_H. The balance loss is the mean of two losses: a loss over groups,
    and a loss over the experts of each group.

    Cost: each token is multiplied with G rows of the outer gate and O times S rows of inner gates,
    whereas a flat gate has E rows; K experts compute the token. Choose it for thousands of experts,
    whose flat gate would cost as much as an expert, or where a token should reach few devices. For
    tens of experts choose a flat router: its gate is cheap, and it has one load to balance instead
    of two.
    """

    config: HierarchicalConfig

    def __init__(self, config: HierarchicalConfig, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__(config, shape, capacity)
        self.num_groups, self.groups_kept = config.groups, config.outer_top_k
        # This router applies the capacity to its own choice, so the outer and the inner router have
        # no capacity.
        outer = config.outer.build(config.outer_shape(shape), Dropless())
        inner = config.inner.build(config.inner_shape(shape), Dropless())
        assert isinstance(outer, TokenChoiceRouter), "it has one gate"
        assert isinstance(inner, TokenChoiceRouter), "it has one gate, or is hierarchical"
        self.outer, self.inner = outer, inner

    def choose(
        self, x_TD: Tensor, valid_R: Tensor | None = None, bank_R: Tensor | None = None
    ) -> Choice:
        """Choose groups for the R rows, then experts for the Q = R*O rows of the inner gates."""
        outer = self.outer.choose(x_TD, valid_R, bank_R)
        group_Q = outer.chosen_TK.reshape(-1)
        row_Q = torch.arange(len(group_Q), device=x_TD.device) // self.config.outer_top_k
        inner_bank_Q = group_Q
        if bank_R is not None:
            inner_bank_Q = group_Q + bank_R[row_Q] * self.config.groups
        valid_Q = None if valid_R is None else valid_R[row_Q]
        inner = self.inner.choose(x_TD, valid_Q, inner_bank_Q)
        size = self.num_experts // self.config.groups
        chosen_QI = inner.chosen_TK + group_Q[:, None] * size
        weight_QI = inner.weight_TK * outer.weight_TK.reshape(-1, 1)
        return Choice(
            chosen_TK=chosen_QI.view(-1, self.top_k),
            weight_TK=weight_QI.view(-1, self.top_k),
            levels=(*outer.levels, *_inner_levels(outer, inner, row_Q)),
            load_GE=self._load(outer, inner, inner_bank_Q, valid_Q),
            abandoned_TK=_abandoned(outer, inner),
        )

    def _load(
        self, outer: Choice, inner: Choice, bank_Q: Tensor, valid_Q: Tensor | None
    ) -> Tensor | None:
        """Load_H(X)_ij = Load_outer(X)_i Load_i(X^(i))_j / |X^(i)| (appendix B).

        X^(i) are the tokens that are sent to group i.
        """
        if outer.load_GE is None or inner.load_GE is None:
            return None
        load_GS = inner.load_GE
        one_Q = torch.ones_like(bank_Q) if valid_Q is None else valid_Q.long()
        count_G = one_Q.new_zeros(len(load_GS)).scatter_add_(0, bank_Q, one_Q)
        load_GS = load_GS * (outer.load_GE.view(-1) / count_G.clamp(min=1))[:, None]
        return load_GS.view(self.shape.banks, -1)

    def step_bias(self, load_E: Tensor, rate: float) -> None:
        self.outer.step_bias(load_E.view(self.shape.banks * self.config.groups, -1).sum(1), rate)
        self.inner.step_bias(load_E, rate)


def _abandoned(outer: Choice, inner: Choice) -> Tensor | None:
    """True for a row that the inner router abandons, or whose group the outer router abandons.

    A token that abandons a group abandons all its experts in the group.
    """
    abandoned_RI = inner.abandoned_TK
    if outer.abandoned_TK is not None:
        outer_RI = outer.abandoned_TK.reshape(-1, 1).expand_as(inner.chosen_TK)
        abandoned_RI = outer_RI if abandoned_RI is None else abandoned_RI | outer_RI
    return None if abandoned_RI is None else abandoned_RI.reshape(len(outer.chosen_TK), -1)


def _inner_levels(outer: Choice, inner: Choice, row_Q: Tensor) -> Iterator[Level]:
    """The inner router's levels, with `token_R` converted from the Q rows to the R outer rows."""
    for level in inner.levels:
        used_R = level.used_R
        if outer.abandoned_TK is not None:
            taken_R = ~outer.abandoned_TK.reshape(-1)[level.token_R]
            used_R = taken_R if used_R is None else used_R & taken_R
        yield replace(level, token_R=row_Q[level.token_R], used_R=used_R)
