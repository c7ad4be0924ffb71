"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

B sequences, S new positions, L positions in all, D width, A heads, R rank of the keys' and values'
latent, N dims that do not turn, P dims that turn, V value dims.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.models.norms import build_norm
from mixtura.models.rotary import Rotary, rotate
from mixtura.models.sight import Sight
from mixtura.models.state import Keep
from mixtura.shapes import LatentAttentionShape, NormShape


class LatentAttention(nn.Module):
    """Keys and values drawn from one latent, the only thing besides a turned key that is kept."""

    def __init__(self, width: int, shape: LatentAttentionShape) -> None:
        super().__init__()
        self.shape = shape
        bias, queries = shape.input_bias, shape.heads * shape.query_dim
        rank, norm = shape.query_rank, NormShape(epsilon=shape.norm_epsilon)
        self.query_down = nn.Linear(width, rank, bias=bias) if rank else None
        self.query_norm = build_norm(rank, norm) if rank else nn.Identity()
        self.query = nn.Linear(rank or width, queries, bias=False)
        self.kv_down = nn.Linear(width, shape.kv_rank + shape.turning_dim, bias=bias)
        self.kv_norm = build_norm(shape.kv_rank, norm)
        drawn = shape.heads * (shape.nope_dim + shape.value_dim)
        self.kv_up = nn.Linear(shape.kv_rank, drawn, bias=False)
        self.out = nn.Linear(shape.heads * shape.value_dim, width, bias=shape.output_bias)
        for linear in (self.query_down, self.query, self.kv_down, self.kv_up, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, rope: Rotary, sight: Sight, keep: Keep | None) -> Tensor:
        """`rope` holds the angles of these S positions, `sight` which of all they see."""
        shape = self.shape
        q, latent_BLR, key_BLP = self.project(x_BSD, rope)
        if keep is not None:
            latent_BLR, key_BLP = keep(latent_BLR, key_BLP)
        # Drawing keys and values costs R (N + V) a position, doing without 2R a pair of positions.
        few = 2 * x_BSD.shape[1] < shape.nope_dim + shape.value_dim
        attend = self.absorbed if keep is not None and few else self.expanded
        return self.out(attend(q, latent_BLR, key_BLP, sight).transpose(1, 2).flatten(2))

    def project(self, x_BSD: Tensor, rope: Rotary) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """((nope_BSAN, turned_BSAP), latent_BSR, key_BSP): queries, and what is kept."""
        shape = self.shape
        squeezed = x_BSD if self.query_down is None else self.query_norm(self.query_down(x_BSD))
        q_BSA = self.query(squeezed).unflatten(-1, (shape.heads, shape.query_dim))
        nope_BSAN, turning_BSAP = q_BSA.split([shape.nope_dim, shape.turning_dim], -1)
        latent_BSR, key_BSP = self.kv_down(x_BSD).split([shape.kv_rank, shape.turning_dim], -1)
        key_BSP = rotate(key_BSP.unsqueeze(2), rope).squeeze(2)
        return (nope_BSAN, rotate(turning_BSAP, rope)), self.kv_norm(latent_BSR), key_BSP

    def expanded(
        self, q: tuple[Tensor, Tensor], latent_BLR: Tensor, key_BLP: Tensor, sight: Sight
    ) -> Tensor:
        """out_BASV from keys and values drawn for every head."""
        shape = self.shape
        drawn_BLA = self.kv_up(latent_BLR).unflatten(-1, (shape.heads, -1))
        k_BLAN, v_BLAV = drawn_BLA.split([shape.nope_dim, shape.value_dim], -1)
        key_BLAP = key_BLP.unsqueeze(2).expand(-1, -1, shape.heads, -1)
        k_BALC = torch.cat([k_BLAN, key_BLAP], -1).transpose(1, 2)
        return F.scaled_dot_product_attention(
            torch.cat(q, -1).transpose(1, 2),
            k_BALC,
            v_BLAV.transpose(1, 2),
            attn_mask=sight.mask,
            is_causal=sight.causal,
            scale=self.scale,
        )

    def absorbed(
        self, q: tuple[Tensor, Tensor], latent_BLR: Tensor, key_BLP: Tensor, sight: Sight
    ) -> Tensor:
        """As `expanded`, attending to the latents themselves: no key or value is drawn.

        q^T (W_k c) = (W_k^T q)^T c, and sum p W_v c = W_v sum p c.
        """
        nope_BSAN, turned_BSAP = q
        shape = self.shape
        drawn_ACR = self.kv_up.weight.unflatten(0, (shape.heads, -1))
        key_ANR, value_AVR = drawn_ACR.split([shape.nope_dim, shape.value_dim], 1)
        asked_BASR = torch.einsum("bsan,anr->basr", nope_BSAN, key_ANR)
        query_BAS = torch.cat([asked_BASR, turned_BSAP.transpose(1, 2)], -1)
        key_BL = torch.cat([latent_BLR, key_BLP], -1)
        score_BASL = torch.einsum("basc,blc->basl", query_BAS, key_BL).float() * self.scale
        seen = sight.full(nope_BSAN.shape[1], latent_BLR.shape[1], latent_BLR.device)
        probs_BASL = score_BASL.masked_fill(~seen, float("-inf")).softmax(-1)
        mixed_BASR = torch.einsum("basl,blr->basr", probs_BASL.to(latent_BLR.dtype), latent_BLR)
        return torch.einsum("basr,avr->basv", mixed_BASR, value_AVR)

    @property
    def scale(self) -> float:
        return self.shape.scale or self.shape.query_dim**-0.5
