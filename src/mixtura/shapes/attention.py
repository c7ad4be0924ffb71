"""The shapes of attention: grouped-query attention and latent attention."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from mixtura.config import Config
from mixtura.shapes import bounds
from mixtura.shapes.ledger import Weight
from mixtura.shapes.rope import RopeScaling


class LocalLayers(Config):
    """Layers with a window: a token attends to the last `window` positions, its own included."""

    window: int = Field(ge=1, le=bounds.CONTEXT)
    layers: tuple[int, ...] = Field(max_length=bounds.LAYERS)
    rope_base: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """the RoPE base of these layers, which then have no RoPE scaling (Gemma 3); None: these layers
    have the base and the scaling of all other layers"""


class AttentionSpec(Config, ABC):
    """The fields and methods that the shapes of all kinds of attention share."""

    heads: int = Field(ge=1, le=bounds.HEADS)
    rope_base: float = Field(default=10_000.0, gt=1, allow_inf_nan=False)
    rope_scaling: RopeScaling | None = None
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """the factor of attention scores; None: 1 / sqrt(number of dims of a head's query)"""
    input_bias: bool = False
    """whether the projections to queries, keys and values, or to their latents, have a bias"""
    output_bias: bool = False

    @property
    @abstractmethod
    def rope_dim(self) -> int:
        """The number of a head's dims that RoPE rotates."""

    @abstractmethod
    def weights(self, width: int, prefix: str) -> Iterator[Weight]: ...

    @abstractmethod
    def flops_of_position(self) -> int:
        """Forward FLOPs of one token in one layer, for each position that the token attends to."""

    def window_of(self, layer: int) -> int | None:
        """The layer's window: the number of positions that a token attends to; None: no window."""
        return None

    def local_base_of(self, layer: int) -> float | None:
        """The RoPE base of a layer that does not use `rope_base` and `rope_scaling`, else None.

        The result is 0 if RoPE does not rotate the layer's queries and keys.
        """
        return None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.rope_dim % 2:
            raise ValueError(f"{self._rope_field}={self.rope_dim} must be even; RoPE rotates pairs")
        if self.rope_scaling is not None and self.rope_scaling.kind == "longrope":
            given = len(self.rope_scaling.short)
            if given != self.rope_dim // 2:
                raise ValueError(
                    f"rope_scaling has {given} factors where {self._rope_field}={self.rope_dim} "
                    f"has {self.rope_dim // 2} pairs"
                )
        return self

    @property
    def _rope_field(self) -> str:
        return "rope_dim"


class AttentionShape(AttentionSpec):
    """Grouped-query attention: `heads` query heads share `kv_heads` heads of keys and values."""

    kind: Literal["grouped"] = "grouped"
    kv_heads: int = Field(ge=1, le=bounds.HEADS)
    head_dim: int = Field(ge=2, le=bounds.SIDE)
    rotated_dim: int | None = Field(default=None, ge=2, le=bounds.SIDE)
    """the number of dims at the start of each head that RoPE rotates; None: all dims of the head"""
    norm: Literal["head", "all"] | None = None
    """RMS norm of queries and keys before RoPE; head: over the dims of one head; all: over the dims
    of all heads; None: no norm"""
    norm_after_rotation: bool = False
    """whether the norm of queries and keys comes after RoPE instead (Hunyuan)"""
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """bound on absolute values of queries, keys and values, applied after any norm (DBRX, OLMoE)"""
    sinks: bool = False
    """whether each head has a learned logit that joins the softmax but has no value (gpt-oss)"""
    output_gate: bool = False
    """whether the heads' outputs are multiplied, dim by dim, by the sigmoid of a projection of the
    token (Qwen3-Next)"""
    local: LocalLayers | None = None
    unrotated: tuple[int, ...] = Field(default=(), max_length=bounds.LAYERS)
    """layers whose queries and keys RoPE does not rotate (EXAONE; called NoPE)"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.norm_after_rotation and (self.norm != "head" or self.sinks):
            raise ValueError(
                f"norm_after_rotation=true needs norm=head and sinks=false; norm={self.norm} and "
                f"sinks={str(self.sinks).lower()} are given"
            )
        if self.output_gate and (self.sinks or self.norm_after_rotation):
            raise ValueError(
                "output_gate=true needs sinks=false and norm_after_rotation=false; no family has "
                "two of them"
            )
        if self.rope_dim > self.head_dim:
            raise ValueError(
                f"rotated_dim={self.rotated_dim} must lie in 2..head_dim={self.head_dim}; lower it"
            )
        return self

    @property
    def rope_dim(self) -> int:
        return self.head_dim if self.rotated_dim is None else self.rotated_dim

    @property
    def _rope_field(self) -> str:
        return "head_dim" if self.rotated_dim is None else "rotated_dim"

    def window_of(self, layer: int) -> int | None:
        local = self.local
        return local.window if local is not None and layer in local.layers else None

    def local_base_of(self, layer: int) -> float | None:
        if layer in self.unrotated:
            return 0.0
        local = self.local
        return local.rope_base if local is not None and layer in local.layers else None

    @property
    def projected(self) -> tuple[int, int, int]:
        """The numbers of rows of queries, of keys and of values in qkv.weight."""
        keys = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, keys, keys

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        queries, keys, _ = self.projected
        rows = sum(self.projected)
        yield Weight(f"{prefix}qkv.weight", (rows, width), "attention")
        if self.input_bias:
            yield Weight(f"{prefix}qkv.bias", (rows,), "attention")
        if self.output_gate:
            yield Weight(f"{prefix}output_gate.weight", (queries, width), "attention")
            if self.input_bias:
                yield Weight(f"{prefix}output_gate.bias", (queries,), "attention")
        if self.norm is not None:
            sizes = (queries, keys) if self.norm == "all" else (self.head_dim, self.head_dim)
            for name, size in zip(("q_norm", "k_norm"), sizes, strict=True):
                yield Weight(f"{prefix}{name}.weight", (size,), "norm")
        if self.sinks:
            yield Weight(f"{prefix}sinks", (self.heads,), "attention")
        yield Weight(f"{prefix}out.weight", (width, queries), "attention")
        if self.output_bias:
            yield Weight(f"{prefix}out.bias", (width,), "attention")

    def flops_of_position(self) -> int:
        return 4 * self.heads * self.head_dim


class LatentAttentionShape(AttentionSpec):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Keys and values of all heads are projected from one latent vector of `kv_rank` dims. The KV
    cache keeps only this latent and one rotated key of `rope_dim` dims, which all heads share.
    """

    kind: Literal["latent"] = "latent"
    query_rank: int | None = Field(default=None, ge=1, le=bounds.SIDE)
    """width of the latent that queries are projected from; None: queries have no latent"""
    kv_rank: int = Field(ge=1, le=bounds.SIDE)
    nope_dim: int = Field(ge=1, le=bounds.SIDE)
    """dims of a head's query and key that RoPE does not rotate"""
    turning_dim: int = Field(ge=2, le=bounds.SIDE)
    """the number of rotated dims of each head's query and of the shared key; recipes and files have
    `rope_dim` under this name"""
    value_dim: int = Field(ge=1, le=bounds.SIDE)
    norm_epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """epsilon of the latents' RMS norms; the norms of blocks have an epsilon of their own"""

    @property
    def rope_dim(self) -> int:
        return self.turning_dim

    @property
    def _rope_field(self) -> str:
        return "turning_dim"

    @property
    def query_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        queries = self.heads * self.query_dim
        if self.query_rank is None:
            yield Weight(f"{prefix}query.weight", (queries, width), "attention")
        else:
            yield Weight(f"{prefix}query_down.weight", (self.query_rank, width), "attention")
            if self.input_bias:
                yield Weight(f"{prefix}query_down.bias", (self.query_rank,), "attention")
            yield Weight(f"{prefix}query_norm.weight", (self.query_rank,), "norm")
            yield Weight(f"{prefix}query.weight", (queries, self.query_rank), "attention")
        latent = self.kv_rank + self.rope_dim
        yield Weight(f"{prefix}kv_down.weight", (latent, width), "attention")
        if self.input_bias:
            yield Weight(f"{prefix}kv_down.bias", (latent,), "attention")
        yield Weight(f"{prefix}kv_norm.weight", (self.kv_rank,), "norm")
        projected = self.heads * (self.nope_dim + self.value_dim)
        yield Weight(f"{prefix}kv_up.weight", (projected, self.kv_rank), "attention")
        yield Weight(f"{prefix}out.weight", (width, self.heads * self.value_dim), "attention")
        if self.output_bias:
            yield Weight(f"{prefix}out.bias", (width,), "attention")

    def flops_of_position(self) -> int:
        return 2 * self.heads * (self.query_dim + self.value_dim)


def _kind(tree: Any) -> Any:
    """The `kind` of an attention config; attention without a `kind` is grouped."""
    if isinstance(tree, AttentionShape | LatentAttentionShape):
        return tree.kind
    # A value that is no mapping counts as grouped, and AttentionShape then refuses it.
    return tree.get("kind", "grouped") if isinstance(tree, Mapping) else "grouped"


AnyAttention = Annotated[
    Annotated[AttentionShape, Tag("grouped")] | Annotated[LatentAttentionShape, Tag("latent")],
    Discriminator(_kind),
]
