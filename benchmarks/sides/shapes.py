"""Shapes that the engine is measured at, and what one token of each must read and multiply."""

from dataclasses import dataclass, replace
from typing import Literal

Architecture = Literal["qwen3moe", "olmoe", "llama"]
GROUP = 32
# A group of 32 weights of 4 bits, and its scale.
BYTES_OF_GROUP = 18
_EVEN = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder whose every layer is an MoE of gated experts; the head is not tied."""

    name: str
    architecture: Architecture
    """as GGUF names it: what its attention norms and how its router weighs"""
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    expert_width: int
    top_k: int
    vocabulary: int
    published_layers: int

    def of_depth(self, layers: int) -> "Shape":
        """With fewer layers, and so much smaller a vocabulary that the head keeps its share."""
        rows = self.vocabulary * layers // self.published_layers
        rows = -(-rows // _EVEN) * _EVEN
        return replace(self, layers=layers, vocabulary=rows)

    @property
    def attention_weights(self) -> int:
        """Of a layer."""
        return self.width * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert_weights(self) -> int:
        """Of one expert."""
        return 3 * self.width * self.expert_width

    @property
    def router_weights(self) -> int:
        """Of a layer; they stay 32 bits wide."""
        return self.experts * self.width

    @property
    def weights(self) -> int:
        layer = self.attention_weights + self.experts * self.expert_weights + self.router_weights
        return self.layers * layer + 2 * self.vocabulary * self.width

    def step_bytes(self, rows: int, bits_of_weight: float) -> int:
        """Weights that one step of `rows` sequences reads, were every choice of experts equally
        likely and independent; the input embedding, of which it reads a few rows, left out."""
        reached = self.experts * (1 - (1 - self.top_k / self.experts) ** rows)
        layer = self.attention_weights + reached * self.expert_weights
        packed = self.layers * layer + self.vocabulary * self.width
        return round(packed * bits_of_weight / 8) + 4 * self.layers * self.router_weights

    def prefill_macs(self, tokens: int) -> int:
        """Multiply-adds with weights that cannot be left out: of the last layer every token needs
        its key and value alone, and only the last token the rest, and the head. Attention's own
        products, one or two hundredths more at 512 tokens, are not counted."""
        layer = self.attention_weights + self.top_k * self.expert_weights + self.router_weights
        keys = 2 * self.width * self.kv_heads * self.head_dim
        last = tokens * keys + layer - keys + self.vocabulary * self.width
        return tokens * (self.layers - 1) * layer + last

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in 16 bits."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


BITS_OF_Q4_0 = BYTES_OF_GROUP * 8 / GROUP

_OLMOE = Shape(
    name="olmoe",
    # ik_llama.cpp does not know OLMoE's own. Sizes are OLMoE's in full; what differs is that a
    # head's queries and keys are normed apart and the chosen weights summed up to 1.
    architecture="qwen3moe",
    layers=16,
    width=2048,
    heads=16,
    kv_heads=16,
    head_dim=128,
    experts=64,
    expert_width=1024,
    top_k=8,
    vocabulary=50304,
    published_layers=16,
)
_MIXTRAL = Shape(
    name="mixtral",
    architecture="llama",
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    experts=8,
    expert_width=14336,
    top_k=2,
    vocabulary=32000,
    published_layers=32,
)
_QWEN3 = Shape(
    name="qwen3",
    architecture="qwen3moe",
    layers=48,
    width=2048,
    heads=32,
    kv_heads=4,
    head_dim=128,
    experts=128,
    expert_width=768,
    top_k=8,
    vocabulary=151936,
    published_layers=48,
)
SHAPES = {shape.name: shape for shape in (_OLMOE, _MIXTRAL, _QWEN3)}
# As many as memory holds beside a peer that computes in 16 bits.
DEPTHS = {"olmoe": 16, "mixtral": 3, "qwen3": 8}
