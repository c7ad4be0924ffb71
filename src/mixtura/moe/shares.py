"""The two factors of a balance loss: shares of the load, and mean probabilities.

Each part of the tokens has its own balance loss. A part is one sequence, or all tokens of a forward
pass. A flat router has one level, whose choices are the experts. A hierarchical router has several
levels: the choices of the last level are the experts, and those of other levels are groups.

T tokens, E experts, N routed rows, B parts, C choices of one level, S choices of one gate, R rows
of one level, G gates of one level, or G groups of experts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixtura.moe.load import load
from mixtura.moe.routing import Level, Routing

LossScope = Literal["sequence", "micro_batch", "global_batch"]


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares of the load and the mean probabilities of one level's choices, for each part."""

    size: int
    """S, the number of choices of one gate"""
    load_BC: Tensor
    """the share of each choice in the rows of its gate, before capacity"""
    prob_BC: Tensor
    """the mean probability of each choice over the level's rows, differentiable; a row counts with
    probability 0 for choices of other gates, so the means sum to 1 over all C"""

    def loss(self) -> Tensor:
        """S * sum_c f_c * P_c, averaged over parts; f is `load_BC` and P is `prob_BC`.

        It is 1 at even load. For a level with several gates it equals the mean of the gates'
        losses, weighted by the rows of each gate.
        """
        return (self.size * (self.load_BC * self.prob_BC).sum(-1)).mean()


def token_parts(routing: Routing, scope: LossScope) -> int:
    """The number of parts, B: the number of sequences under scope `sequence`, else 1."""
    return routing.num_sequences if scope == "sequence" else 1


def shares_of(
    routing: Routing, scope: LossScope = "sequence", step_load_E: Tensor | None = None
) -> tuple[Shares, ...]:
    """The shares of each level of the router, the outermost first; padding is not counted.

    Under scope `sequence` each sequence is a part; otherwise all local tokens are one part. Under
    `global_batch` the load is `step_load_E`, if that is given. A part without tokens gets even
    shares, and its loss is 1, as at even load; the same holds for a gate without rows. So the mean
    of all sequences' losses does not depend on how the sequences are divided into batches.
    """
    parts = token_parts(routing, scope)
    if scope == "global_batch" and step_load_E is not None:
        load_BE = step_load_E[None]
    else:
        load_BE = _load_by_part(routing, parts)
    if not routing.levels:
        return (_shares(load_BE, _flat_probability(routing, parts), banks=1),)
    return tuple(
        _shares(load_BE, _level_probability(level, routing, parts), level.banks)
        for level in routing.levels
    )


def group_shares_of(
    routing: Routing, scope: LossScope = "sequence", step_load_E: Tensor | None = None
) -> Shares:
    """The shares of the router's groups of experts; a group may be one device's experts.

    For a hierarchical router these are the shares of the outermost level.
    """
    outermost = shares_of(routing, scope, step_load_E)[0]
    if routing.levels:
        return outermost
    load_BG, prob_BG = (
        of_BE.unflatten(1, (routing.num_groups, -1)).sum(-1)
        for of_BE in (outermost.load_BC, outermost.prob_BC)
    )
    return Shares(routing.num_groups, load_BG, prob_BG)


def _shares(load_BE: Tensor, prob_BC: Tensor, banks: int) -> Shares:
    """The shares of a level with `banks` gates, from the load of the experts."""
    choices = prob_BC.shape[1]
    size = choices // banks
    load_BGS = load_BE.unflatten(1, (choices, -1)).sum(-1).unflatten(1, (banks, size))
    return Shares(size, _divided_or_even(load_BGS.to(prob_BC.dtype)).flatten(1), prob_BC)


def _divided_or_even(of: Tensor) -> Tensor:
    """`of` divided by its sum along the last dim; equal shares if the sum is 0."""
    total = of.sum(-1, keepdim=True)
    return torch.where(total > 0, of / total.clamp(min=1), 1 / of.shape[-1])


def _mean_or_even(sum_BC: Tensor, count_B1: Tensor | int) -> Tensor:
    """The mean probabilities, from their sums and the number of rows of each part.

    A part without rows gets equal probabilities, which have no gradient.
    """
    if isinstance(count_B1, int):
        return sum_BC / count_B1 if count_B1 else torch.full_like(sum_BC, 1 / sum_BC.shape[1])
    return torch.where(count_B1 > 0, sum_BC / count_B1.clamp(min=1), 1 / sum_BC.shape[1])


def _flat_probability(routing: Routing, parts: int) -> Tensor:
    """prob_BE of a flat router. Here S is the number of tokens of a part."""
    assert routing.probs_TE is not None, "this router gives no probabilities"
    probs_BSE = routing.probs_TE.view(parts, -1, routing.num_experts)
    if routing.valid_T is None:
        return _mean_or_even(probs_BSE.sum(1), probs_BSE.shape[1])
    valid_BS = routing.valid_T.view(parts, -1)
    return _mean_or_even((probs_BSE * valid_BS[..., None]).sum(1), valid_BS.sum(1, keepdim=True))


def _level_probability(level: Level, routing: Routing, parts: int) -> Tensor:
    """prob_BC of one level of a hierarchical router.

    A row has probabilities of its own gate only, so the rows of each gate are summed separately.
    """
    token_R, probs_RS = level.token_R, level.probs_RS
    counts_R = torch.ones_like(token_R, dtype=torch.bool)
    if routing.valid_T is not None:
        counts_R = counts_R & routing.valid_T[token_R]
    if level.used_R is not None:
        counts_R = counts_R & level.used_R
    part_R = token_R // max(routing.num_tokens // parts, 1)
    bank_R = 0 if level.bank_R is None else level.bank_R
    sum_GS = probs_RS.new_zeros(parts * level.banks, probs_RS.shape[1])
    sum_GS = sum_GS.index_add(0, part_R * level.banks + bank_R, probs_RS * counts_R[:, None])
    count_B = token_R.new_zeros(parts).index_add(0, part_R, counts_R.to(token_R.dtype))
    return _mean_or_even(sum_GS.view(parts, -1), count_B[:, None])


def _load_by_part(routing: Routing, parts: int) -> Tensor:
    if parts == 1:
        return load(routing)[None]
    # Unused rows have the expert number E, and are counted in an additional last bin.
    bins = routing.num_experts + 1
    key_N = routing.sequence_N * bins + routing.chosen_N
    valid_N = routing.valid_N
    one_N = torch.ones_like(key_N) if valid_N is None else valid_N.to(key_N.dtype)
    flat = key_N.new_zeros(parts * bins).scatter_add_(0, key_N, one_N)
    return flat.view(parts, bins)[:, :-1]
