"""Losses that balance the work of devices; a device has one group of consecutive experts.

T tokens, E experts, K experts per token, N routed rows, G groups of experts. B parts of the tokens:
each sequence is a part, or all tokens are one part.
"""

import torch
from torch import Tensor

from mixtura.moe.routing import Routing
from mixtura.moe.shares import LossScope, group_shares_of, token_parts


def device_balance_loss(
    routing: Routing, scope: LossScope = "sequence", step_load_E: Tensor | None = None
) -> Tensor:
    """sum_i f'_i P'_i over devices i (DeepSeek-V2, arXiv 2405.04434, eq. 26-28); 1 at even load.

    f'_i is the mean over device i's experts of E/(K T) times the number of rows that chose the
    expert; this equals G times the device's share of all rows. P'_i is the sum of the mean
    probabilities of the device's experts; under a hierarchical router it is the outermost gate's
    mean probability of group i. A load that is uneven only among the experts of one device does not
    increase the loss.
    """
    return group_shares_of(routing, scope, step_load_E).loss()


def communication_loss(routing: Routing, scope: LossScope = "sequence") -> Tensor:
    """sum_i f''_i P''_i over devices i (DeepSeek-V2, arXiv 2405.04434, eq. 29-31).

    f''_i is G/(M T) times the number of tokens that are sent to device i, where M is `groups_kept`,
    the largest number of devices to which a token may be sent. A token counts once, however many of
    the device's experts it chose. P''_i is the sum of the mean probabilities of the device's
    experts, as in `device_balance_loss`. The loss is 1 if each token is sent to M devices and each
    device receives equally many tokens.
    """
    prob_BG = group_shares_of(routing, scope).prob_BC
    share_BG = _sent_share(routing, token_parts(routing, scope), prob_BG.dtype)
    return (routing.num_groups / routing.groups_kept * (share_BG * prob_BG).sum(-1)).mean()


def _sent_share(routing: Routing, parts: int, dtype: torch.dtype) -> Tensor:
    """share_BG: the share of a part's tokens that chose at least one expert of a group.

    For a part without tokens the share is groups_kept / G, as at even load.
    """
    num_groups, num_tokens = routing.num_groups, routing.num_tokens
    # An unused row has the expert number num_experts, which belongs to an additional last group.
    bins = num_groups + 1
    group_N = routing.chosen_N // (routing.num_experts // num_groups)
    sent = group_N.new_zeros(num_tokens * bins)
    sent_TG = sent.scatter_(0, routing.token_N * bins + group_N, 1).view(num_tokens, bins)[:, :-1]
    valid_T = routing.valid_T
    if valid_T is None:
        valid_T = torch.ones(num_tokens, dtype=torch.bool, device=sent.device)
    sent_BG = (sent_TG * valid_T[:, None]).view(parts, -1, num_groups).sum(1)
    tokens_B1 = valid_T.view(parts, -1).sum(1, keepdim=True)
    even = routing.groups_kept / num_groups
    return torch.where(tokens_B1 > 0, sent_BG.to(dtype) / tokens_B1.clamp(min=1), even)
