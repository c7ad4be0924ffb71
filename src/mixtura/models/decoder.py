"""The decoder: pre-norm blocks of attention and an FFN that is dense or an MoE.

B sequences, S positions, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from mixtura.models.attention import Attention, SinkAttention
from mixtura.models.language_model import DecoderOutput, LanguageModel
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.norms import build_norm
from mixtura.models.rotary import Rotary, rotary
from mixtura.models.sight import Sight, sight
from mixtura.models.state import Keep, State
from mixtura.moe import MoE, MoEConfig, MoEOutput
from mixtura.moe.capacity import Dropless
from mixtura.moe.experts import DenseFFN
from mixtura.shapes import AttentionShape, DecoderShape


class DecoderConfig(DecoderShape):
    """A decoder: its shape, and for MoE layers how they route, balance and compute."""

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
        case AttentionShape() as shape:
            return Attention(config.width, shape, config.norm)
        case shape:
            return LatentAttention(config.width, shape)


Part = Callable[[Tensor], Tensor]
"""A mixer or an FFN as a block runs it: normed rows in, what is added to the stream out."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); what is added may be normed, and scaled.

    That order stands in `run` alone; the native program (native/decoder) is its twin.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.width, config.norm)
        self.attention = build_attention(config)
        self.ffn_norm = build_norm(config.width, config.norm)
        moe = config.moe_of(layer)
        if moe is not None:
            self.ffn: MoE | DenseFFN = MoE(config.width, moe)
        else:
            assert config.ffn_width is not None, "DecoderShape checks this"
            self.ffn = DenseFFN(config.width, config.ffn_width, config.activation)
        post = config.post_norms
        self.attention_post_norm = build_norm(config.width, config.norm) if post else nn.Identity()
        self.ffn_post_norm = build_norm(config.width, config.norm) if post else nn.Identity()
        self.scale = config.multipliers.residual

    def forward(
        self,
        x_BSD: Tensor,
        rope: Rotary,
        seen: Sight,
        ids_BS: Tensor,
        valid_BS: Tensor | None,
        keep: Keep | None,
    ) -> tuple[Tensor, MoEOutput | None]:
        outputs: list[MoEOutput] = []

        def mix(normed_BSD: Tensor) -> Tensor:
            return self.attention(normed_BSD, rope, seen, keep)

        def feed(normed_BSD: Tensor) -> Tensor:
            if not isinstance(self.ffn, MoE):
                return self.ffn(normed_BSD)
            # Generation is dropless: one new token must not depend on how many came with it.
            capacity = None if keep is None else Dropless()
            outputs.append(self.ffn(normed_BSD, valid_BS, capacity, ids_BS))
            return outputs[0].hidden

        x_BSD = self.run(x_BSD, mix, feed)
        return x_BSD, outputs[0] if outputs else None

    def run(self, x: Tensor, mix: Part, feed: Part, asked_N: Tensor | None = None) -> Tensor:
        """The residual stream after the block: the one order of norms, mixer and FFN.

        `mix` turns normed positions into what attention adds, and `feed` into what the FFN adds.
        Where `asked_N` numbers some of the rows, `mix` gives those alone, and no other goes on.
        """
        mixed = self.attention_post_norm(mix(self.attention_norm(x)))
        x = self.added(x if asked_N is None else x[asked_N], mixed)
        return self.added(x, self.ffn_post_norm(feed(self.ffn_norm(x))))

    def added(self, x_BSD: Tensor, branch_BSD: Tensor) -> Tensor:
        """The residual stream, once a branch has written to it."""
        return x_BSD + (branch_BSD if self.scale == 1 else branch_BSD * self.scale)


class Decoder(LanguageModel):
    """A decoder-only transformer; dense where the config holds no MoE."""

    turns_in_fp32: bool = False
    """whether evaluation in bf16 turns queries and keys in fp32, as some families do"""

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
        """Branches that write to the residual stream start smaller, by 1/sqrt(2 layers)."""
        nn.init.normal_(self.head.weight, std=self.config.width**-0.5)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=1.0)
        shrink = (2 * self.config.layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(("w_out", "attention.out.weight")):
                    parameter.mul_(shrink)

    def forward(
        self, tokens_BS: Tensor, valid_BS: Tensor | None = None, state: State | None = None
    ) -> DecoderOutput:
        """Logits of the next token at each position.

        `valid_BS` is False for padding, which may stand anywhere: no token sees it, and no router
        counts it. With a state the tokens continue what it holds, padding included; where they
        pass LongRoPE's original context, all that it holds is read again, and `layers` are of all.
        Raises ConfigError past the context.
        """
        batch, asked = tokens_BS.shape
        self.check_length(asked if state is None else state.length + asked)
        start = 0
        if state is not None:
            state.check_room(asked)
            tokens_BS, valid_BS, start = state.to_read(tokens_BS, valid_BS)
        new, valid_BL = tokens_BS.shape[1], valid_BS
        if state is not None:
            valid_BL = state.remember(valid_BS, start, batch, new)
        positions_S = torch.arange(start, start + new, device=tokens_BS.device)
        seen = {
            window: sight(new, start + new, tokens_BS.device, window, valid_BL)
            for window in set(self._windows)
        }
        x_BSD = self.embed(tokens_BS)
        ropes = {base: self._rope(positions_S, base, x_BSD.dtype) for base in self._rope_bases}
        layers: list[MoEOutput | None] = []
        for index, block in enumerate(self.blocks):
            keep = None if state is None else partial(state.layers[index].extend, start)
            rope, window = ropes[self._rope_bases[index]], self._windows[index]
            x_BSD, output = block(x_BSD, rope, seen[window], tokens_BS, valid_BS, keep)
            layers.append(output)
        if state is not None:
            state.end_pass(start + new)
        return DecoderOutput(self.logits(x_BSD[:, new - asked :]), tuple(layers))

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """What the first block reads."""
        if self.embedding is None:
            x_BSD = F.embedding(tokens_BS, self.head.weight)
        else:
            x_BSD = self.embedding(tokens_BS)
        if self.config.multipliers.embedding == 1:
            return x_BSD
        # Rounded to the model's dtype, as the families that scale do.
        return x_BSD * torch.tensor(self.config.multipliers.embedding, dtype=x_BSD.dtype)

    def logits(self, x_BSD: Tensor) -> Tensor:
        """What the last block gave, as logits_BSV."""
        logits_BSV = self.head(self.norm(x_BSD))
        scale = self.config.multipliers.logits
        return logits_BSV if scale == 1 else logits_BSV * scale

    def _rope(self, positions_S: Tensor, local_base: float | None, dtype: torch.dtype) -> Rotary:
        heads = self.config.attention
        if local_base is not None:
            rope = rotary(positions_S, heads.rope_dim, local_base)
        else:
            rope = rotary(positions_S, heads.rope_dim, heads.rope_base, heads.rope_scaling)
        return rope.to(self.turning_dtype(dtype))

    def turning_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What queries and keys of `dtype` are turned in.

        A model that is all bf16 answers as transformers has it; training turns in fp32.
        """
        return torch.float32 if self.training or self.turns_in_fp32 else dtype
