"""Grouped-query attention with rotary positions and a key-value cache.

B sequences, S new positions, L positions in all, D width, A heads, G key-value heads, H = A + G,
C head dim, P = C/2 pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.models.cache import LayerCache
from mixtura.models.rotary import Rotary, rotate
from mixtura.shapes import AttentionShape


class Attention(nn.Module):
    """Causal self-attention through scaled_dot_product_attention."""

    def __init__(self, width: int, shape: AttentionShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.split = (queries, keys, keys)
        self.qkv = nn.Linear(width, sum(self.split), bias=False)
        self.out = nn.Linear(queries, width, bias=False)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=queries**-0.5)

    def forward(self, x_BSD: Tensor, rope: Rotary, cache: LayerCache | None) -> Tensor:
        """`rope` holds the angles of these S positions."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qkv_BSHC = self.qkv(x_BSD).unflatten(-1, (-1, self.shape.head_dim))
        # Queries and keys turn together: half the calls.
        qk_BSHC = rotate(qkv_BSHC[:, :, : heads + kv_heads], rope)
        q_BAS, k_BGS = (part.transpose(1, 2) for part in qk_BSHC.split([heads, kv_heads], 2))
        v_BGS = qkv_BSHC[:, :, heads + kv_heads :].transpose(1, 2)
        mask_SL = None
        new = x_BSD.shape[1]
        if cache is not None:
            k_BGL, v_BGL = cache.extend(k_BGS, v_BGS)
            if k_BGL.shape[2] > new:
                mask_SL = _causal_mask(new, k_BGL.shape[2], x_BSD.device)
        else:
            k_BGL, v_BGL = k_BGS, v_BGS
        out_BASC = F.scaled_dot_product_attention(
            q_BAS,
            k_BGL,
            v_BGL,
            attn_mask=mask_SL,
            is_causal=mask_SL is None,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return self.out(out_BASC.transpose(1, 2).flatten(2))


def _causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """mask_SL: the last `new` of `total` positions, each seeing itself and all before."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
