"""Grouped-query attention with RoPE and a KV cache.

B sequences, S new positions, L positions in all, M = L + 1, D width, A query heads, G key-value
heads, H = A + G, C head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.kernels.row_linear import row_sigmoid
from mixtura.models.attention_mask import AttentionMask
from mixtura.models.norms import build_norm
from mixtura.models.rotary import Rotary, rotate
from mixtura.models.state import Keep
from mixtura.shapes import AttentionShape, NormShape


class Attention(nn.Module):
    """Causal grouped-query self-attention; a subclass may override `attend`."""

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

    def forward(
        self, x_BSD: Tensor, rope: Rotary, mask: AttentionMask, keep: Keep | None
    ) -> Tensor:
        """out_BSD; `rope` has the angles of the S new positions, `mask` their attention mask.

        `keep` stores the new keys and values and returns those of all positions; None: no cache.
        """
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qk_BSHC, v_BSGC = self.project(x_BSD)
        # One call rotates queries and keys together, which halves the number of calls.
        qk_BSHC = self.after_rotation(rotate(qk_BSHC, rope))
        q_BASC, k_BGSC = (part.transpose(1, 2) for part in qk_BSHC.split([heads, kv_heads], 2))
        k_BGLC, v_BGLC = k_BGSC, v_BSGC.transpose(1, 2)
        if keep is not None:
            k_BGLC, v_BGLC = keep(k_BGLC, v_BGLC)
        out_BASC = self.attend(q_BASC, k_BGLC, v_BGLC, mask)
        return self.finish(out_BASC.transpose(1, 2).flatten(2), x_BSD)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What attention adds, from what the heads of some tokens give, side by side; (.., D).

        `x` has these tokens as `project` takes them.
        """
        return self.out(mixed)

    def project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(qk_BSHC, v_BSGC), with norms and clipping where the shape has them; before RoPE."""
        shape, head = self.shape, (-1, self.shape.head_dim)
        if shape.norm is None:
            return self.project_without_norm(x_BSD)
        parts = self.qkv(x_BSD).split(shape.projected, -1)
        if shape.norm == "head":
            parts = tuple(part.unflatten(-1, head) for part in parts)
        q, k, v = self.q_norm(parts[0]), self.k_norm(parts[1]), parts[2]
        if shape.norm == "all":
            q, k, v = (part.unflatten(-1, head) for part in (q, k, v))
        if shape.clip is not None:
            q, k, v = (part.clamp(-shape.clip, shape.clip) for part in (q, k, v))
        return torch.cat([q, k], 2), v

    def project_without_norm(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """As `project`, with clipping only."""
        shape = self.shape
        qkv_BSHC = self.qkv(x_BSD).unflatten(-1, (-1, shape.head_dim))
        if shape.clip is not None:
            qkv_BSHC = qkv_BSHC.clamp(-shape.clip, shape.clip)
        return qkv_BSHC.split([shape.heads + shape.kv_heads, shape.kv_heads], 2)

    def after_rotation(self, qk_BSHC: Tensor) -> Tensor:
        """The queries and keys to attend with, from rotated queries and keys."""
        return qk_BSHC

    def attend(self, q_BASC: Tensor, k_BGLC: Tensor, v_BGLC: Tensor, mask: AttentionMask) -> Tensor:
        """out_BASC, for each query head the weighted sum of values."""
        return F.scaled_dot_product_attention(
            q_BASC,
            k_BGLC,
            v_BGLC,
            attn_mask=mask.mask,
            is_causal=mask.causal,
            scale=self.shape.scale,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )


class LateNormAttention(Attention):
    """The norm of each head's queries and keys follows RoPE (Hunyuan).

    The norm has a weight for each dim, so scores depend on positions and not only on distances:
    padding before a text changes the text's outputs, as in transformers' own forward pass.
    """

    def project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.project_without_norm(x_BSD)

    def after_rotation(self, qk_BSHC: Tensor) -> Tensor:
        q_BSAC, k_BSGC = qk_BSHC.split([self.shape.heads, self.shape.kv_heads], 2)
        return torch.cat([self.q_norm(q_BSAC), self.k_norm(k_BSGC)], 2)


class GatedAttention(Attention):
    """A sigmoid of the token scales what each head gives, dim by dim (Qwen3-Next)."""

    def __init__(self, width: int, shape: AttentionShape, norm: NormShape | None = None) -> None:
        super().__init__(width, shape, norm)
        queries, _, _ = shape.projected
        self.output_gate = nn.Linear(width, queries, bias=shape.input_bias)
        nn.init.normal_(self.output_gate.weight, std=width**-0.5)
        if self.output_gate.bias is not None:
            nn.init.zeros_(self.output_gate.bias)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed * row_sigmoid(self.output_gate(x)))


class SinkAttention(Attention):
    """Each head's softmax has one logit more, the sink: learned, and without a value (gpt-oss)."""

    def __init__(self, width: int, shape: AttentionShape, norm: NormShape | None = None) -> None:
        super().__init__(width, shape, norm)
        self.sinks = nn.Parameter(torch.zeros(shape.heads))

    def attend(self, q_BASC: Tensor, k_BGLC: Tensor, v_BGLC: Tensor, mask: AttentionMask) -> Tensor:
        scale = self.shape.scale or self.shape.head_dim**-0.5
        copies = self.shape.heads // self.shape.kv_heads
        k_BALC, v_BALC = (part.repeat_interleave(copies, 1) for part in (k_BGLC, v_BGLC))
        score_BASL = q_BASC @ k_BALC.mT
        # In evaluation, scores and probabilities of a bf16 model are rounded to bf16, as in
        # transformers.
        score_BASL = (score_BASL.float() if self.training else score_BASL) * scale
        seen = mask.full(q_BASC.shape[2], k_BGLC.shape[2], q_BASC.device)
        score_BASL = score_BASL.masked_fill(~seen, float("-inf"))
        sink_BAS1 = self.sinks.to(score_BASL).view(1, -1, 1, 1).expand(*score_BASL.shape[:3], 1)
        logits_BASM = torch.cat([score_BASL, sink_BAS1], -1)
        # The largest logit is subtracted first, because bf16 is more precise near 0.
        logits_BASM = logits_BASM - logits_BASM.detach().amax(-1, keepdim=True)
        return logits_BASM.softmax(-1)[..., :-1].to(v_BALC.dtype) @ v_BALC


def _norms(sizes: tuple[int, int] | None, norm: NormShape) -> tuple[nn.Module, nn.Module]:
    if sizes is None:
        return nn.Identity(), nn.Identity()
    # Queries and keys have RMS norms in every family, even if the blocks have layer norms.
    rms = NormShape(epsilon=norm.epsilon, unit_offset=norm.unit_offset)
    return build_norm(sizes[0], rms), build_norm(sizes[1], rms)
