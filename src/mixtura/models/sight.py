"""Which positions a token sees: those before it, within a window, and no padding.

B sequences, S new positions, L positions in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sight:
    """For scaled_dot_product_attention: its `is_causal`, or a mask, or neither where all is seen.

    `mask` is (S, L) or (B, 1, S, L), True where a position is seen.
    """

    causal: bool
    mask: Tensor | None = None

    def full(self, new: int, total: int, device: torch.device) -> Tensor:
        """The mask even where none is needed."""
        if self.mask is not None:
            return self.mask
        mask_SL = torch.ones(new, total, dtype=torch.bool, device=device)
        return mask_SL.tril(total - new) if self.causal else mask_SL


def sight(
    new: int,
    total: int,
    device: torch.device,
    window: int | None = None,
    valid_BL: Tensor | None = None,
) -> Sight:
    """What the last `new` of `total` positions see.

    A token sees itself whatever `valid_BL` says of it, so that no softmax is over nothing.
    """
    cut = window is not None and window < total
    if not cut and valid_BL is None:
        if new == total:
            return Sight(causal=True)
        if new == 1:
            return Sight(causal=False)
    # Position i of the new ones is total - new + i of all.
    mask_SL = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    if cut and window is not None:
        mask_SL = mask_SL.triu(total - new - window + 1)
    if valid_BL is None:
        return Sight(False, mask_SL)
    itself_SL = torch.eye(total, dtype=torch.bool, device=device)[total - new :]
    return Sight(False, (mask_SL & (valid_BL[:, None, :] | itself_SL))[:, None])
