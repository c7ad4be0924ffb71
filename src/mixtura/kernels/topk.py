"""The k best experts of each token. T tokens, E experts, K experts per token."""

import torch
from torch import Tensor

# For a larger top_k, torch.topk is faster on a CPU than passes of argmax (docs/decisions/0004).
MOST_PASSES = 4


def topk_naive(score_TE: Tensor, top_k: int) -> Tensor:
    """chosen_TK: each token's K best experts, the best first; the naive twin of `topk`.

    Experts of equal score may be chosen in any order.
    """
    return score_TE.topk(top_k).indices


def topk(score_TE: Tensor, top_k: int) -> Tensor:
    """chosen_TK: each token's K best experts; on a CPU K passes of argmax find them if K is small.

    Each token needs at least K scores above -inf; otherwise an expert may be chosen twice.
    """
    if score_TE.device.type != "cpu" or top_k > MOST_PASSES:
        return topk_naive(score_TE, top_k)
    chosen = [score_TE.argmax(-1, keepdim=True)]
    left_TE = score_TE.clone() if top_k > 1 else score_TE
    for _ in range(top_k - 1):
        left_TE.scatter_(1, chosen[-1], -torch.inf)
        chosen.append(left_TE.argmax(-1, keepdim=True))
    return torch.cat(chosen, dim=1)
