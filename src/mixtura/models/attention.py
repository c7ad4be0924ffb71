"""Grouped-query attention with rotary positions and a key-value cache.

B sequences, S new positions, L positions in all, D width, A heads, G key-value heads, H = A + G,
C head dim, P = C/2 pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.models.norms import build_norm
from mixtura.models.rotary import Rotary, rotate
from mixtura.models.sight import Sight
from mixtura.models.state import Keep
from mixtura.shapes import AttentionShape, NormShape


class Attention(nn.Module):
    """Causal self-attention; a subclass may attend otherwise."""

    def __init__(self, width: int, shape: AttentionShape, norm: NormShape | None = None) -> None:
        super().__init__()
        self.shape = shape
        queries, keys, _ = shape.projected
        self.qkv = nn.Linear(width, sum(shape.projected), bias=shape.input_bias)
        self.out = nn.Linear(queries, width, bias=shape.output_bias)
        sizes = {"all": (queries, keys), "head": (shape.head_dim, shape.head_dim), None: None}
        self.q_norm, self.k_norm = _norms(sizes[shape.norm], norm or NormShape())
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=queries**-0.5)
        for linear in (self.qkv, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, rope: Rotary, sight: Sight, keep: Keep | None) -> Tensor:
        """`rope` holds the angles of these S positions, `sight` which of all they see."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qk_BSHC, v_BSGC = self.project(x_BSD)
        # Queries and keys turn together: half the calls.
        qk_BSHC = rotate(qk_BSHC, rope)
        q_BASC, k_BGSC = (part.transpose(1, 2) for part in qk_BSHC.split([heads, kv_heads], 2))
        k_BGLC, v_BGLC = k_BGSC, v_BSGC.transpose(1, 2)
        if keep is not None:
            k_BGLC, v_BGLC = keep(k_BGLC, v_BGLC)
        out_BASC = self.attend(q_BASC, k_BGLC, v_BGLC, sight)
        return self.out(out_BASC.transpose(1, 2).flatten(2))

    def project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(qk_BSHC, v_BSGC), normed and clipped."""
        shape, head = self.shape, (-1, self.shape.head_dim)
        if shape.norm is None:
            qkv_BSHC = self.qkv(x_BSD).unflatten(-1, head)
            if shape.clip is not None:
                qkv_BSHC = qkv_BSHC.clamp(-shape.clip, shape.clip)
            return qkv_BSHC.split([shape.heads + shape.kv_heads, shape.kv_heads], 2)
        parts = self.qkv(x_BSD).split(shape.projected, -1)
        if shape.norm == "head":
            parts = tuple(part.unflatten(-1, head) for part in parts)
        q, k, v = self.q_norm(parts[0]), self.k_norm(parts[1]), parts[2]
        if shape.norm == "all":
            q, k, v = (part.unflatten(-1, head) for part in (q, k, v))
        if shape.clip is not None:
            q, k, v = (part.clamp(-shape.clip, shape.clip) for part in (q, k, v))
        return torch.cat([q, k], 2), v

    def attend(self, q_BASC: Tensor, k_BGLC: Tensor, v_BGLC: Tensor, sight: Sight) -> Tensor:
        """out_BASC"""
        return F.scaled_dot_product_attention(
            q_BASC,
            k_BGLC,
            v_BGLC,
            attn_mask=sight.mask,
            is_causal=sight.causal,
            scale=self.shape.scale,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )


class SinkAttention(Attention):
    """Each head has a logit more in its softmax, learned and without a value (gpt-oss)."""

    def __init__(self, width: int, shape: AttentionShape, norm: NormShape | None = None) -> None:
        super().__init__(width, shape, norm)
        self.sinks = nn.Parameter(torch.zeros(shape.heads))

    def attend(self, q_BASC: Tensor, k_BGLC: Tensor, v_BGLC: Tensor, sight: Sight) -> Tensor:
        scale = self.shape.scale or self.shape.head_dim**-0.5
        copies = self.shape.heads // self.shape.kv_heads
        k_BALC, v_BALC = (part.repeat_interleave(copies, 1) for part in (k_BGLC, v_BGLC))
        score_BASL = q_BASC @ k_BALC.mT
        # Evaluation in bf16 rounds scores and shares, as transformers does.
        score_BASL = (score_BASL.float() if self.training else score_BASL) * scale
        seen = sight.full(q_BASC.shape[2], k_BGLC.shape[2], q_BASC.device)
        score_BASL = score_BASL.masked_fill(~seen, float("-inf"))
        sink_BAS1 = self.sinks.to(score_BASL).view(1, -1, 1, 1).expand(*score_BASL.shape[:3], 1)
        logits_BASM = torch.cat([score_BASL, sink_BAS1], -1)
        # The largest is taken off first, since bf16 keeps more of what is near 0.
        logits_BASM = logits_BASM - logits_BASM.detach().amax(-1, keepdim=True)
        return logits_BASM.softmax(-1)[..., :-1].to(v_BALC.dtype) @ v_BALC


def _norms(sizes: tuple[int, int] | None, norm: NormShape) -> tuple[nn.Module, nn.Module]:
    if sizes is None:
        return nn.Identity(), nn.Identity()
    # The norm of a head is RMS in every family, whatever the blocks have.
    rms = NormShape(epsilon=norm.epsilon, unit_offset=norm.unit_offset)
    return build_norm(sizes[0], rms), build_norm(sizes[1], rms)
