"""Balance between devices, each of which holds one group of consecutive experts.

T tokens, E experts, N routed rows, G groups of experts, B sequences (or 1: all tokens as one).
"""

import torch
from torch import Tensor

from mixtura.moe.routing import Routing
from mixtura.moe.shares import LossScope, group_shares_of, token_parts


def device_balance_loss(
    routing: Routing, scope: LossScope = "sequence", step_load_E: Tensor | None = None
) -> Tensor:
    """sum_i f'_i P'_i over devices (DeepSeek-V2, arXiv 2405.04434, eq. 26-28); 1 at even load.

    f'_i: mean over the device's experts of E/(K T) times the rows that chose each; P'_i: the sum of
    their mean probabilities. So f'_i is G times the device's share of the rows. A busy expert and
    an idle one on the same device cost nothing. Under a hierarchical router P'_i is the outermost
    gate's mean probability of group i.
    """
    return group_shares_of(routing, scope, step_load_E).loss()


def communication_loss(routing: Routing, scope: LossScope = "sequence") -> Tensor:
    """sum_i f''_i P''_i over devices (DeepSeek-V2, arXiv 2405.04434, eq. 29-31).

    f''_i: G/(M T) times the tokens sent to device i, with M (`groups_kept`) the most devices that a
    token may reach; P''_i: as P'_i above. A token counts once, however many of the device's experts
    it chose. The loss is 1 where each token reaches M devices, and each device equally many tokens.
    """
    prob_BG = group_shares_of(routing, scope).prob_BC
    share_BG = _sent_share(routing, token_parts(routing, scope), prob_BG.dtype)
    return (routing.num_groups / routing.groups_kept * (share_BG * prob_BG).sum(-1)).mean()


def _sent_share(routing: Routing, parts: int, dtype: torch.dtype) -> Tensor:
    """share_BG: of each part's tokens, the share that chose an expert of each group.

    It is M/G, the share at even load, for a part without tokens.
    """
    num_groups, num_tokens = routing.num_groups, routing.num_tokens
    # One bin more: an unused row has expert num_experts, in the group after the last.
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
