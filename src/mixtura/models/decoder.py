"""The decoder: pre-norm blocks of a mixer (attention or a recurrence) and an FFN, dense or an MoE.

B sequences, S new positions, L positions in all, D width, N logit rows, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from mixtura.models.attention import (
    Attention,
    GatedAttention,
    LateNormAttention,
    SinkAttention,
)
from mixtura.models.attention_mask import AttentionMask, attention_mask
from mixtura.models.gated_delta import GatedDelta
from mixtura.models.language_model import DecoderOutput, LanguageModel
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.mamba2 import Mamba2
from mixtura.models.norms import build_norm
from mixtura.models.recurrence import Recurrence
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.models.rotary import Rotary, local_rotary, rotary
from mixtura.models.short_conv import ShortConv
from mixtura.models.state import KVLayer, State
from mixtura.moe import MoE, MoEConfig, MoEOutput
from mixtura.moe.capacity import Dropless
from mixtura.moe.experts import DenseFFN
from mixtura.shapes import (
    AnyRecurrence,
    AttentionShape,
    DecoderShape,
    GatedDeltaShape,
    Mamba2Shape,
    ShortConvShape,
)


class DecoderConfig(DecoderShape):
    """The shape of a decoder, and how its MoE layers route, balance and compute."""

    kind: Literal["decoder"] = "decoder"
    moe: MoEConfig | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _router_fits(self) -> Self:
        if self.moe is not None:
            self.moe.of_language_model(self.vocabulary)
        return self

    def moe_of(self, layer: int) -> MoEConfig | None:
        moe = super().moe_of(layer)
        assert moe is None or isinstance(moe, MoEConfig)
        return None if moe is None else moe.of_language_model(self.vocabulary)

    def build(self) -> "Decoder":
        return Decoder(self)


def build_attention(config: DecoderConfig) -> nn.Module:
    match config.attention:
        case AttentionShape(sinks=True) as shape:
            return SinkAttention(config.width, shape, config.norm)
        case AttentionShape(norm_after_rotation=True) as shape:
            return LateNormAttention(config.width, shape, config.norm)
        case AttentionShape(output_gate=True) as shape:
            return GatedAttention(config.width, shape, config.norm)
        case AttentionShape() as shape:
            return Attention(config.width, shape, config.norm)
        case shape:
            return LatentAttention(config.width, shape)


def build_recurrence(width: int, shape: AnyRecurrence) -> Recurrence:
    match shape:
        case ShortConvShape():
            return ShortConv(width, shape)
        case GatedDeltaShape():
            return GatedDelta(width, shape)
        case Mamba2Shape():
            return Mamba2(width, shape)


Branch = Callable[[Tensor], Tensor]
"""A mixer or an FFN: a function of normed rows, whose result is added to the residual stream."""


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)).

    The mixer is attention or a recurrence, and the other of the two is None. A branch's result may
    be normed and scaled before it is added. This order is written only in `run` and in the native
    program (native/decoder).
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        pre, post = config.pre_norms, config.post_norms
        self.attention_norm = build_norm(config.width, config.norm) if pre else nn.Identity()
        recurrence = config.recurrence_of(layer)
        self.attention: nn.Module | None = None
        self.recurrence: Recurrence | None = None
        if recurrence is None:
            self.attention = build_attention(config)
        else:
            self.recurrence = build_recurrence(config.width, recurrence)
        self.ffn_norm = build_norm(config.width, config.norm) if pre else nn.Identity()
        moe = config.moe_of(layer)
        if moe is not None:
            self.ffn: MoE | DenseFFN = MoE(config.width, moe)
        else:
            assert config.ffn_width is not None, "DecoderShape checks this"
            self.ffn = DenseFFN(config.width, config.ffn_width, config.activation)
        self.attention_post_norm = build_norm(config.width, config.norm) if post else nn.Identity()
        self.ffn_post_norm = build_norm(config.width, config.norm) if post else nn.Identity()
        self.scale = config.multipliers.residual

    def forward(
        self,
        x_BSD: Tensor,
        rope: Rotary,
        seen: AttentionMask,
        ids_BS: Tensor,
        valid_BS: Tensor | None,
        kept: KVLayer | RecurrentLayer | None,
        start: int,
    ) -> tuple[Tensor, MoEOutput | None]:
        """`kept` is what the layer holds of the sequences; the new positions begin at `start`."""
        outputs: list[MoEOutput] = []

        def mix(normed_BSD: Tensor) -> Tensor:
            if self.recurrence is not None:
                states = kept.states if isinstance(kept, RecurrentLayer) else None
                return self.recurrence(normed_BSD, valid_BS, states)
            assert self.attention is not None, "a block has a mixer"
            keep = partial(kept.extend, start) if isinstance(kept, KVLayer) else None
            return self.attention(normed_BSD, rope, seen, keep)

        def feed(normed_BSD: Tensor) -> Tensor:
            if not isinstance(self.ffn, MoE):
                return self.ffn(normed_BSD)
            # Generation is dropless: a token must not depend on the number of tokens in its pass.
            capacity = None if kept is None else Dropless()
            outputs.append(self.ffn(normed_BSD, valid_BS, capacity, ids_BS))
            return outputs[0].hidden

        x_BSD = self.run(x_BSD, mix, feed)
        return x_BSD, outputs[0] if outputs else None

    def run(
        self, x: Tensor, mix: Branch, feed: Branch, logit_row_N: Tensor | None = None
    ) -> Tensor:
        """The residual stream after the block.

        `mix` computes the mixer from normed rows, and `feed` the FFN. With `logit_row_N`, `mix`
        returns the rows of these numbers alone, and only they go through the FFN.
        """
        mixed = self.attention_post_norm(mix(self.attention_norm(x)))
        x = self.added(x if logit_row_N is None else x[logit_row_N], mixed)
        return self.added(x, self.ffn_post_norm(feed(self.ffn_norm(x))))

    def added(self, x_BSD: Tensor, branch_BSD: Tensor) -> Tensor:
        """The residual stream after a branch is scaled and added."""
        return x_BSD + (branch_BSD if self.scale == 1 else branch_BSD * self.scale)


class Decoder(LanguageModel):
    """A decoder-only transformer; its FFNs are dense where the config has no MoE."""

    rotates_in_fp32: bool = False
    """whether a bf16 model rotates queries and keys in fp32 in evaluation, as some families do"""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config: DecoderConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = build_norm(config.width, config.norm)
        self.head = nn.Linear(config.width, config.vocabulary, bias=config.head_bias)
        self.embedding: nn.Module | None = None
        if not config.tied_head:
            self.embedding = nn.Embedding(config.vocabulary, config.width)
        self._windows = [config.attention.window_of(layer) for layer in range(config.layers)]
        self._rope_bases = [config.attention.local_base_of(layer) for layer in range(config.layers)]
        self._initialise()

    def _initialise(self) -> None:
        """Matrices whose output enters the residual stream begin smaller, by 1/sqrt(2 layers)."""
        nn.init.normal_(self.head.weight, std=self.config.width**-0.5)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=1.0)
        shrink = (2 * self.config.layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(("w_out", "attention.out.weight", "recurrence.out.weight")):
                    parameter.mul_(shrink)

    def forward(
        self, tokens_BS: Tensor, valid_BS: Tensor | None = None, state: State | None = None
    ) -> DecoderOutput:
        """Logits of the next token at each position of `tokens_BS`.

        `valid_BS` is False for padding, which may be anywhere: no token attends to padding, and no
        router counts it. With a `state` the tokens continue its sequences. Where they grow past
        LongRoPE's original context, the whole sequences are read again, and `layers` of the output
        covers all their positions. Raises ConfigError past the context.
        """
        batch, given = tokens_BS.shape
        self.check_length(given if state is None else state.length + given)
        start = 0
        if state is not None:
            state.check_room(given)
            tokens_BS, valid_BS, start = state.to_read(tokens_BS, valid_BS)
        new, valid_BL = tokens_BS.shape[1], valid_BS
        if state is not None:
            valid_BL = state.remember(valid_BS, start, batch, new)
        positions_S = torch.arange(start, start + new, device=tokens_BS.device)
        seen = {
            window: attention_mask(new, start + new, tokens_BS.device, window, valid_BL)
            for window in set(self._windows)
        }
        x_BSD = self.embed(tokens_BS)
        ropes = {base: self._rope(positions_S, base, x_BSD.dtype) for base in self._rope_bases}
        layers: list[MoEOutput | None] = []
        for index, block in enumerate(self.blocks):
            kept = None if state is None else state.layers[index]
            rope, window = ropes[self._rope_bases[index]], self._windows[index]
            x_BSD, output = block(x_BSD, rope, seen[window], tokens_BS, valid_BS, kept, start)
            layers.append(output)
        if state is not None:
            state.end_pass(start + new)
        return DecoderOutput(self.logits(x_BSD[:, new - given :]), tuple(layers))

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """The input of the first block, x_BSD."""
        if self.embedding is None:
            x_BSD = F.embedding(tokens_BS, self.head.weight)
        else:
            x_BSD = self.embedding(tokens_BS)
        if self.config.multipliers.embedding == 1:
            return x_BSD
        # The factor is rounded to the model's dtype, as in the families that scale embeddings.
        return x_BSD * torch.tensor(self.config.multipliers.embedding, dtype=x_BSD.dtype)

    def logits(self, x_BSD: Tensor) -> Tensor:
        """logits_BSV from the output of the last block."""
        logits_BSV = self.head(self.norm(x_BSD))
        scale = self.config.multipliers.logits
        return logits_BSV if scale == 1 else logits_BSV * scale

    def _rope(self, positions_S: Tensor, local_base: float | None, dtype: torch.dtype) -> Rotary:
        heads = self.config.attention
        if local_base is not None:
            rope = local_rotary(positions_S, heads.rope_dim, local_base)
        else:
            rope = rotary(positions_S, heads.rope_dim, heads.rope_base, heads.rope_scaling)
        return rope.to(self.rope_dtype(dtype))

    def rope_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which queries and keys of `dtype` are rotated.

        Training rotates in fp32. Evaluation rotates in `dtype`, as transformers does, unless
        `rotates_in_fp32` is set.
        """
        return torch.float32 if self.training or self.rotates_in_fp32 else dtype
