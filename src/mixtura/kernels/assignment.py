"""The balanced assignment: equally many tokens for every expert, and the best total score.

Each token gets one expert. T tokens, E experts. Each expert gets q = T // E tokens, and r = T - q*E
experts get one token more: an expert has C = q + 1 places, and r experts may use their last place,
the extra place. U tokens that bid, F experts that get bids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The increment of bids is divided by this factor from one auction to the next.
SHARPER = 5.0


def balanced_assignment_naive(score_TE: Tensor) -> Tensor:
    """expert_T of the exact optimum; the naive twin of `balanced_assignment`.

    The method is successive shortest paths: tokens are assigned one after another. A token takes
    the best path to an expert with room, where each expert on the path gets a token and moves one
    of its own tokens to the next expert. The time grows with T^2 E.
    """
    num_tokens, num_experts = score_TE.shape
    least, extras = divmod(num_tokens, num_experts)
    score_TE = _finite(score_TE)
    expert_T = torch.full((num_tokens,), -1)
    for token in range(num_tokens):
        load_E = torch.bincount(expert_T[:token], minlength=num_experts)
        taken = int((load_E > least).sum())
        gain_EE, mover_EE = _moves(score_TE[:token], expert_T[:token], num_experts)
        if taken == extras:
            # An expert without an extra place may take over the extra place of another expert. The
            # other expert must then move one of its tokens on.
            swap_EE = (load_E == least)[:, None] & (load_E > least) & (gain_EE < 0)
            gain_EE[swap_EE], mover_EE[swap_EE] = 0.0, -1
        total_E, via_E = score_TE[token].clone(), torch.full((num_experts,), -1)
        for _ in range(num_experts):
            best = (total_E[:, None] + gain_EE).max(0)
            better_E = best.values > total_E + 1e-12
            total_E = torch.where(better_E, best.values, total_E)
            via_E = torch.where(better_E, best.indices, via_E)
        room_E = (load_E < least) | ((load_E == least) & (taken < extras))
        here = int(total_E.masked_fill(~room_E, -torch.inf).argmax())
        while (source := int(via_E[here])) >= 0:
            if (mover := int(mover_EE[source, here])) >= 0:
                expert_T[mover] = here
            here = source
        expert_T[token] = here
    return expert_T


def _moves(score_TE: Tensor, expert_T: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """(gain_EE, mover_EE): the best gain of moving one token from expert i to j, and that token."""
    gain_EE = score_TE.new_full((num_experts, num_experts), -torch.inf)
    mover_EE = torch.full((num_experts, num_experts), -1)
    for expert in expert_T.unique().tolist():
        token_X = (expert_T == expert).nonzero().squeeze(1)
        best = (score_TE[token_X] - score_TE[token_X, expert, None]).max(0)
        gain_EE[expert], mover_EE[expert] = best.values, token_X[best.indices]
    return gain_EE.fill_diagonal_(-torch.inf), mover_EE


def balanced_assignment(score_TE: Tensor, epsilon: float = 0.01) -> Tensor:
    """expert_T, whose total score is at most T * epsilon * (range of scores) below the optimum.

    The range is the largest minus the smallest score. Scores that are not finite count as 0.

    The method is Bertsekas' auction, in which each expert is a group of equal places with a common
    price. In each round every token without a place bids for its best expert, that is the expert
    with the largest score minus price. A bid is the price, plus the lead over the second-best
    expert, plus an increment. An expert keeps its highest bids, and the r extra places go to the
    highest bids for an extra place. The increment of the first auction is large. Each further
    auction starts with the prices of the auction before and has a smaller increment, down to
    epsilon * (range of scores). Each round waits for the device.
    """
    num_tokens, num_experts = score_TE.shape
    if num_experts == 1 or num_tokens == 0:
        return torch.zeros(num_tokens, dtype=torch.int64, device=score_TE.device)
    score_TE = _finite(score_TE)
    spread = float(score_TE.max() - score_TE.min()) or 1.0
    price_E = score_TE.new_zeros(num_experts)
    share = 1.0 / SHARPER
    while True:
        share = max(share / SHARPER, epsilon)
        places = _Places.empty(price_E, num_tokens)
        _auction(score_TE, places, share * spread)
        if share == epsilon:
            return places.expert_of_tokens(num_tokens)
        price_E = places.price_E()


def _finite(score_TE: Tensor) -> Tensor:
    return score_TE.detach().double().nan_to_num(0.0, 0.0, 0.0)


@dataclass(slots=True)
class _Places:
    """Each expert's places: the tokens in them and their bids, the highest bid first."""

    bid_EC: Tensor
    """the bid in each place, or the price of a free place, which a new bid must exceed; -inf for an
    extra place that the expert may not use"""
    token_EC: Tensor
    """-1 for a place without a token"""
    extras: int
    """r, the number of extra places that may be used"""

    @classmethod
    def empty(cls, price_E: Tensor, num_tokens: int) -> "_Places":
        """Free places, each with its expert's price as the bid to exceed."""
        least, extras = divmod(num_tokens, len(price_E))
        bid_EC = price_E[:, None].repeat(1, least + 1)
        token_EC = torch.full_like(bid_EC, -1, dtype=torch.int64)
        places = cls(bid_EC, token_EC, extras)
        places.close_extras()
        return places

    def price_E(self) -> Tensor:
        """The price of each expert: the bid that a new bid for this expert must exceed.

        If the expert may use its extra place, the price is the bid in that place. Otherwise the
        price is the lowest bid in the expert's other places, or the lowest bid in the extra places
        of all experts if that is lower.
        """
        extra_E = self.bid_EC[:, -1]
        open_E = extra_E > -torch.inf
        dearer = torch.full_like(extra_E, torch.inf)
        lowest = torch.where(open_E, extra_E, dearer).min()
        last_E = self.bid_EC[:, -2] if self.bid_EC.shape[1] > 1 else dearer
        return torch.where(open_E, extra_E, torch.minimum(last_E, lowest))

    def take(self, expert_U: Tensor, bid_U: Tensor, token_U: Tensor) -> Tensor:
        """Enter the bids of these tokens; return the tokens that have no place afterwards."""
        expert_F, index_U = expert_U.unique(return_inverse=True)
        rank_U = _rank_among_equals(index_U)
        size = (len(expert_F), int(rank_U.max()) + 1)
        new_bid = bid_U.new_full(size, -torch.inf).index_put((index_U, rank_U), bid_U)
        new_token = token_U.new_full(size, -1).index_put((index_U, rank_U), token_U)
        bids = torch.cat([self.bid_EC[expert_F], new_bid], 1)
        tokens = torch.cat([self.token_EC[expert_F], new_token], 1)
        bids, order = bids.sort(dim=1, descending=True)
        tokens = tokens.gather(1, order)
        kept = self.bid_EC.shape[1]
        self.bid_EC[expert_F], self.token_EC[expert_F] = bids[:, :kept], tokens[:, :kept]
        left = torch.cat([tokens[:, kept:].reshape(-1), self.close_extras()])
        return left[left >= 0]

    def close_extras(self) -> Tensor:
        """Keep the r extra places with the highest bids; return the tokens of the others."""
        closed_X = self.bid_EC[:, -1].argsort(descending=True)[self.extras :]
        token_X = self.token_EC[closed_X, -1]
        self.bid_EC[closed_X, -1], self.token_EC[closed_X, -1] = -torch.inf, -1
        return token_X

    def expert_of_tokens(self, num_tokens: int) -> Tensor:
        expert_EC = torch.arange(len(self.token_EC), device=self.token_EC.device)[:, None]
        expert_EC = expert_EC.expand_as(self.token_EC)
        # A place without a token has token -1, which writes into an additional last entry.
        expert_T = self.token_EC.new_empty(num_tokens + 1)
        return expert_T.index_put((self.token_EC,), expert_EC)[:-1]


def _auction(score_TE: Tensor, places: _Places, epsilon: float) -> None:
    """Repeat rounds of bids until every token has a place."""
    token_U = torch.arange(len(score_TE), device=score_TE.device)
    while len(token_U):
        price_E = places.price_E()
        best = (score_TE[token_U] - price_E).topk(2, dim=1)
        expert_U = best.indices[:, 0]
        lead_U = best.values[:, 0] - best.values[:, 1]
        token_U = places.take(expert_U, price_E[expert_U] + lead_U + epsilon, token_U)


def _rank_among_equals(of_U: Tensor) -> Tensor:
    """rank_U: the number of earlier entries with the same value."""
    sorted_U, order_U = of_U.sort(stable=True)
    place_U = torch.arange(len(of_U), device=of_U.device)
    rank_U = place_U - torch.searchsorted(sorted_U, sorted_U)
    return torch.empty_like(rank_U).scatter_(0, order_U, rank_U)
