"""Llama and Mixtral, which are one architecture in llama.cpp, and OLMoE, Qwen2 and Qwen3.

P pairs of dims that RoPE rotates in a head.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import Architecture
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes import AttentionShape, DecoderShape


class Llama(Architecture):
    """A dense model, or one with an MoE in every layer, such as Mixtral."""

    name = "llama"
    interleaved = True
    experts_in_ffn = True

    def model_type(self, metadata: Metadata) -> str:
        return "mixtral" if has_experts(metadata) else "llama"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        config["attention_bias"] = "blk.0.attn_q.bias" in names
        if has_experts(metadata):
            return config | expert_counts(metadata, "num_local_experts")
        return {**config, "mlp_bias": "blk.0.ffn_gate.bias" in names}


class Qwen2(Architecture):
    name = "qwen2"

    def model_type(self, metadata: Metadata) -> str:
        return "qwen2"


class Qwen3(Architecture):
    name = "qwen3"

    def model_type(self, metadata: Metadata) -> str:
        return "qwen3"


class Olmoe(Architecture):
    """The norms of queries and of keys span all heads.

    llama.cpp needs as many KV heads as query heads.
    """

    name = "olmoe"
    needs_head = True
    experts_in_ffn = True

    def model_type(self, metadata: Metadata) -> str:
        return "olmoe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return config | expert_counts(metadata, "num_experts") | {"norm_topk_prob": False}

    def check(self, shape: DecoderShape) -> None:
        super().check(shape)
        check_head_width(shape, self.name)
        check_kv_heads(shape, self.name)


class Qwen2Moe(Architecture):
    """Every layer is an MoE with a shared expert, whose output is multiplied by a gate."""

    name = "qwen2moe"
    needs_head = True

    def model_type(self, metadata: Metadata) -> str:
        return "qwen2_moe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        ffn_width = config["intermediate_size"]
        shared = metadata.count(".expert_shared_feed_forward_length", ffn_width)
        return {
            **config,
            **expert_counts(metadata, "num_experts"),
            "moe_intermediate_size": expert_width(metadata, ffn_width),
            "shared_expert_intermediate_size": shared,
            "qkv_bias": "blk.0.attn_q.bias" in names,
            "norm_topk_prob": False,
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        shared = decoder["moe"]["shared_width"]
        return {**super().keys(decoder), ".expert_shared_feed_forward_length": shared}

    def check(self, shape: DecoderShape) -> None:
        super().check(shape)
        check_head_width(shape, self.name)


class Qwen3Moe(Architecture):
    """Every layer is an MoE. The combine weights of a token's experts are renormalised."""

    name = "qwen3moe"

    def model_type(self, metadata: Metadata) -> str:
        return "qwen3_moe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return {
            **config,
            **expert_counts(metadata, "num_experts"),
            "moe_intermediate_size": expert_width(metadata, config["intermediate_size"]),
            "norm_topk_prob": True,
        }


def has_experts(metadata: Metadata) -> bool:
    return ".expert_count" in metadata and metadata.number(".expert_count") > 0


def expert_counts(metadata: Metadata, key: str) -> Tree:
    """Read the number of experts, as the config key `key`, and the experts for each token."""
    experts = metadata.count(".expert_count")
    used = metadata.count(".expert_used_count")
    if used > experts:
        raise metadata.error(".expert_used_count", f"{used}, expected at most {experts}, all")
    return {key: experts, "num_experts_per_tok": used}


def expert_width(metadata: Metadata, ffn_width: int) -> int:
    """The width of one expert.

    Older files state only `ffn_width`, the sum of the widths of a token's chosen experts.
    """
    together = max(1, ffn_width // metadata.count(".expert_used_count"))
    return metadata.count(".expert_feed_forward_length", together)


def check_head_width(shape: DecoderShape, name: str) -> None:
    """Raise ConfigError if heads times head_dim is not the model's width."""
    attention = shape.attention
    assert isinstance(attention, AttentionShape), "this family has no other"
    if attention.heads * attention.head_dim != shape.width:
        raise ConfigError(
            f"attention.head_dim={attention.head_dim} times heads={attention.heads} is not "
            f"width={shape.width}, as llama.cpp has it in {name}; write it as another family"
        )


def check_kv_heads(shape: DecoderShape, name: str) -> None:
    """Raise ConfigError if there are fewer KV heads than query heads."""
    attention = shape.attention
    assert isinstance(attention, AttentionShape), "this family has no other"
    if attention.kv_heads != attention.heads:
        raise ConfigError(
            f"attention.kv_heads={attention.kv_heads} of heads={attention.heads}: llama.cpp "
            f"runs {name} with as many of each alone; write it as another family"
        )
