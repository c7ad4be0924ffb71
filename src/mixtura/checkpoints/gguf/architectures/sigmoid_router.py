"""Grouped-query attention with DeepSeek-V3's router: GLM-4.5, dots.llm1 and MiniMax M2."""

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import NAMES, Architecture
from mixtura.checkpoints.gguf.architectures.llama import (
    check_kv_heads,
    expert_counts,
    expert_width,
)
from mixtura.checkpoints.gguf.architectures.routed_experts import (
    SIGMOID,
    experts_keys,
    layers_config,
    router_config,
)
from mixtura.checkpoints.gguf.links import Named, same
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes import AttentionShape, DecoderShape
from mixtura.shapes.families import Piece


class SigmoidRouter(Architecture):
    """Shared experts, dense first layers and a choosing bias; a subclass names its HF family."""

    dense_layers = True

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        scores = metadata.count(".expert_gating_func", SIGMOID)
        if scores != SIGMOID:
            raise metadata.error(".expert_gating_func", f"{scores}, expected {SIGMOID}, a sigmoid")
        return {
            **config,
            **expert_counts(metadata, "n_routed_experts"),
            **router_config(metadata),
            **layers_config(metadata),
            "moe_intermediate_size": expert_width(metadata, config["intermediate_size"]),
            "attention_bias": "blk.0.attn_q.bias" in names,
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        return {**super().keys(decoder), **experts_keys(decoder["moe"])}

    def in_block(
        self, one: Named, block: str, rest: str, shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        if rest.endswith("e_score_correction_bias"):
            yield from same(one, f"{block}exp_probs_b.bias")
        else:
            yield from super().in_block(one, block, rest, shape, present)


class Glm4Moe(SigmoidRouter):
    """RoPE rotates a part of each head; queries and keys are normed if the file has such norms."""

    name = "glm4moe"
    partly_rotated = True
    names = MappingProxyType({**NAMES, "post_attention_layernorm": "post_attention_norm"})

    def model_type(self, metadata: Metadata) -> str:
        return "glm4_moe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return {**config, "use_qk_norm": "blk.0.attn_q_norm.weight" in names}


class Dots1(SigmoidRouter):
    """Each head's queries and keys are normed. llama.cpp has no sliding window in dots1."""

    name = "dots1"

    def model_type(self, metadata: Metadata) -> str:
        return "dots1"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return {**config, "sliding_window": None}

    def check(self, shape: DecoderShape) -> None:
        super().check(shape)
        check_kv_heads(shape, self.name)
        attention = shape.attention
        assert isinstance(attention, AttentionShape), "this family has no other"
        if attention.local is not None:
            raise ConfigError(
                f"attention.local.window={attention.local.window} has no place in a GGUF file of "
                f"the architecture {self.name}; keep the model as a Hugging Face folder"
            )


class MiniMaxM2(SigmoidRouter):
    """Every layer is an MoE; one norm spans the queries of all heads, and another the keys."""

    name = "minimax-m2"
    partly_rotated = True
    dense_layers = False
    names = MappingProxyType({**NAMES, "block_sparse_moe.gate": "ffn_gate_inp"})

    def model_type(self, metadata: Metadata) -> str:
        return "minimax_m2"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return {
            **config,
            **expert_counts(metadata, "num_local_experts"),
            "intermediate_size": config["moe_intermediate_size"],
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        return {
            **Architecture.keys(self, decoder),
            ".expert_gating_func": SIGMOID,
        }
