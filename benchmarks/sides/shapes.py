"""The shapes of the engine benchmark, with the bytes and multiply-adds that a token needs."""

from dataclasses import dataclass, replace
from typing import Literal

Architecture = Literal["qwen3moe", "olmoe", "llama"]
GROUP = 32
# A group has 32 weights of 4 bits and a scale of 16 bits.
BYTES_OF_GROUP = 18
_EVEN = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with an MoE of gated experts in every layer, and a head that is not tied."""

    name: str
    architecture: Architecture
    """GGUF's name; it sets the norms of attention and the weights of chosen experts"""
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
        """A shape with fewer layers. Its vocabulary shrinks alike, so the head keeps its share."""
        rows = self.vocabulary * layers // self.published_layers
        rows = -(-rows // _EVEN) * _EVEN
        return replace(self, layers=layers, vocabulary=rows)

    @property
    def attention_weights(self) -> int:
        """The attention weights of a layer."""
        return self.width * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert_weights(self) -> int:
        """The weights of one expert."""
        return 3 * self.width * self.expert_width

    @property
    def router_weights(self) -> int:
        """The router weights of a layer, which are fp32."""
        return self.experts * self.width

    @property
    def weights(self) -> int:
        layer = self.attention_weights + self.experts * self.expert_weights + self.router_weights
        return self.layers * layer + 2 * self.vocabulary * self.width

    def step_bytes(self, rows: int, bits_of_weight: float) -> int:
        """Bytes of weights that a step of `rows` sequences is expected to read.

        The choices of experts are taken as independent and equally likely. The input embedding, of
        which a step reads a few rows, is not counted.
        """
        reached = self.experts * (1 - (1 - self.top_k / self.experts) ** rows)
        layer = self.attention_weights + reached * self.expert_weights
        packed = self.layers * layer + self.vocabulary * self.width
        return round(packed * bits_of_weight / 8) + 4 * self.layers * self.router_weights

    def prefill_macs(self, tokens: int) -> int:
        """Multiply-adds with weights that a prefill needs.

        In the last layer every token needs only its key and value; the last token also needs the
        rest of the layer, and the head. Attention's own products are not counted; at 512 tokens
        they would add one or two hundredths.
        """
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
    # ik_llama.cpp does not support OLMoE's own architecture. All sizes are OLMoE's. In `qwen3moe`
    # queries and keys are normalised head by head, and the weights of chosen experts sum to 1.
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
# As many layers as fit into memory beside a peer with 16-bit weights.
DEPTHS = {"olmoe": 16, "mixtral": 3, "qwen3": 8}
