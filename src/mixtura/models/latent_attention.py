"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

B sequences, S new positions, L positions in all, D width, A heads, R rank of the latent of keys and
values, N query dims without RoPE, P dims with RoPE, V value dims, C = N + P, M = N + V.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.models.attention_mask import AttentionMask
from mixtura.models.norms import build_norm
from mixtura.models.rotary import Rotary, rotate
from mixtura.models.state import Keep
from mixtura.shapes import LatentAttentionShape, NormShape


class LatentAttention(nn.Module):
    """Keys and values are projected from one latent vector a position.

    The cache has only that latent and one rotated key, which all heads share.
    """

    def __init__(self, width: int, shape: LatentAttentionShape) -> None:
        super().__init__()
        self.shape = shape
        bias, queries = shape.input_bias, shape.heads * shape.query_dim
        rank, norm = shape.query_rank, NormShape(epsilon=shape.norm_epsilon)
        self.query_down = nn.Linear(width, rank, bias=bias) if rank else None
        self.query_norm = build_norm(rank, norm) if rank else nn.Identity()
        self.query = nn.Linear(rank or width, queries, bias=False)
        self.kv_down = nn.Linear(width, shape.kv_rank + shape.rope_dim, bias=bias)
        self.kv_norm = build_norm(shape.kv_rank, norm)
        keys_and_values = shape.heads * (shape.nope_dim + shape.value_dim)
        self.kv_up = nn.Linear(shape.kv_rank, keys_and_values, bias=False)
        self.out = nn.Linear(shape.heads * shape.value_dim, width, bias=shape.output_bias)
        for linear in (self.query_down, self.query, self.kv_down, self.kv_up, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(
        self, x_BSD: Tensor, rope: Rotary, mask: AttentionMask, keep: Keep | None
    ) -> Tensor:
        """out_BSD; `rope` has the angles of the S new positions, `mask` their attention mask.

        `keep` stores the new latents and rotated keys and returns those of all positions; None: no
        cache.
        """
        shape = self.shape
        q, latent_BLR, key_BLP = self.project(x_BSD, rope)
        if keep is not None:
            latent_BLR, key_BLP = keep(latent_BLR, key_BLP)
        # Per head, `expanded` projects each of L positions for R (N + V), and `absorbed` costs 2R
        # more for each of S L pairs of positions. So `absorbed` is cheaper if 2S < N + V.
        few = 2 * x_BSD.shape[1] < shape.nope_dim + shape.value_dim
        attend = self.absorbed if keep is not None and few else self.expanded
        return self.out(attend(q, latent_BLR, key_BLP, mask).transpose(1, 2).flatten(2))

    def project(self, x_BSD: Tensor, rope: Rotary) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """((nope_BSAN, rotated_BSAP), latent_BSR, key_BSP): queries, latents and rotated keys."""
        shape = self.shape
        squeezed = x_BSD if self.query_down is None else self.query_norm(self.query_down(x_BSD))
        q_BSA = self.query(squeezed).unflatten(-1, (shape.heads, shape.query_dim))
        nope_BSAN, plain_BSAP = q_BSA.split([shape.nope_dim, shape.rope_dim], -1)
        latent_BSR, key_BSP = self.kv_down(x_BSD).split([shape.kv_rank, shape.rope_dim], -1)
        key_BSP = rotate(key_BSP.unsqueeze(2), rope).squeeze(2)
        return (nope_BSAN, rotate(plain_BSAP, rope)), self.kv_norm(latent_BSR), key_BSP

    def expanded(
        self, q: tuple[Tensor, Tensor], latent_BLR: Tensor, key_BLP: Tensor, mask: AttentionMask
    ) -> Tensor:
        """out_BASV from keys and values that are projected for every head."""
        shape = self.shape
        kv_BLAM = self.kv_up(latent_BLR).unflatten(-1, (shape.heads, -1))
        k_BLAN, v_BLAV = kv_BLAM.split([shape.nope_dim, shape.value_dim], -1)
        key_BLAP = key_BLP.unsqueeze(2).expand(-1, -1, shape.heads, -1)
        k_BALC = torch.cat([k_BLAN, key_BLAP], -1).transpose(1, 2)
        return F.scaled_dot_product_attention(
            torch.cat(q, -1).transpose(1, 2),
            k_BALC,
            v_BLAV.transpose(1, 2),
            attn_mask=mask.mask,
            is_causal=mask.causal,
            scale=self.scale,
        )

    def absorbed(
        self, q: tuple[Tensor, Tensor], latent_BLR: Tensor, key_BLP: Tensor, mask: AttentionMask
    ) -> Tensor:
        """As `expanded`, with attention over the latents: no key or value is projected.

        With query q, latent c and probability p: q^T (W_k c) = (W_k^T q)^T c, and
        sum p W_v c = W_v sum p c.
        """
        nope_BSAN, rotated_BSAP = q
        shape = self.shape
        weight_AMR = self.kv_up.weight.unflatten(0, (shape.heads, -1))
        key_ANR, value_AVR = weight_AMR.split([shape.nope_dim, shape.value_dim], 1)
        query_BASR = torch.einsum("bsan,anr->basr", nope_BSAN, key_ANR)
        query_BAS = torch.cat([query_BASR, rotated_BSAP.transpose(1, 2)], -1)
        key_BL = torch.cat([latent_BLR, key_BLP], -1)
        score_BASL = torch.einsum("basc,blc->basl", query_BAS, key_BL).float() * self.scale
        seen = mask.full(nope_BSAN.shape[1], latent_BLR.shape[1], latent_BLR.device)
        probs_BASL = score_BASL.masked_fill(~seen, float("-inf")).softmax(-1)
        mixed_BASR = torch.einsum("basl,blr->basr", probs_BASL.to(latent_BLR.dtype), latent_BLR)
        return torch.einsum("basr,avr->basv", mixed_BASR, value_AVR)

    @property
    def scale(self) -> float:
        return self.shape.scale or self.shape.query_dim**-0.5
