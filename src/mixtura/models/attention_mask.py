"""The attention mask: a token attends to earlier tokens, within a window, and to no padding.

B sequences, S new positions, L positions in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """The mask arguments of scaled_dot_product_attention.

    `causal` is its `is_causal`. `mask` is its `attn_mask`, (S, L) or (B, 1, S, L), True where a new
    position attends to a position. False and None mean that every position is attended to.
    """

    causal: bool
    mask: Tensor | None = None

    def full(self, new: int, total: int, device: torch.device) -> Tensor:
        """The mask as a tensor, even where `mask` is None."""
        if self.mask is not None:
            return self.mask
        mask_SL = torch.ones(new, total, dtype=torch.bool, device=device)
        return mask_SL.tril(total - new) if self.causal else mask_SL


def attention_mask(
    new: int,
    total: int,
    device: torch.device,
    window: int | None = None,
    valid_BL: Tensor | None = None,
) -> AttentionMask:
    """The mask of the last `new` of `total` positions; `valid_BL` is False for padding.

    Padding attends to itself, so that no softmax is over an empty set.
    """
    cut = window is not None and window < total
    if not cut and valid_BL is None:
        if new == total:
            return AttentionMask(causal=True)
        if new == 1:
            return AttentionMask(causal=False)
    # New position i is position total - new + i of all.
    mask_SL = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    if cut and window is not None:
        mask_SL = mask_SL.triu(total - new - window + 1)
    if valid_BL is None:
        return AttentionMask(False, mask_SL)
    itself_SL = torch.eye(total, dtype=torch.bool, device=device)[total - new :]
    return AttentionMask(False, (mask_SL & (valid_BL[:, None, :] | itself_SL))[:, None])
