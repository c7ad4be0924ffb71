"""Hunyuan-A13B: a shared expert beside routed experts, and norms of queries and keys after RoPE."""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import NAMES, Architecture
from mixtura.checkpoints.gguf.architectures.llama import expert_counts, expert_width
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree


class HunyuanMoe(Architecture):
    """Every layer is an MoE; the file's RoPE base already includes the HF config's `alpha`."""

    name = "hunyuan-moe"
    names = MappingProxyType(
        {
            **NAMES,
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
            "mlp.gate.wg": "ffn_gate_inp",
            "mlp.shared_mlp.gate_proj": "ffn_gate_shexp",
            "mlp.shared_mlp.up_proj": "ffn_up_shexp",
            "mlp.shared_mlp.down_proj": "ffn_down_shexp",
        }
    )

    def model_type(self, metadata: Metadata) -> str:
        return "hunyuan_v1_moe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        counts = expert_counts(metadata, "num_experts")
        width = expert_width(metadata, config["intermediate_size"])
        shared = metadata.count(".expert_shared_feed_forward_length", width)
        if shared != width:
            raise metadata.error(
                ".expert_shared_feed_forward_length",
                f"{shared}, expected {width}, as of an expert",
            )
        return {
            **config,
            "num_experts": counts["num_experts"],
            "moe_topk": counts["num_experts_per_tok"],
            "intermediate_size": width,
            "attention_bias": "blk.0.attn_q.bias" in names,
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        shared = decoder["moe"]["shared_width"]
        return {**super().keys(decoder), ".expert_shared_feed_forward_length": shared}
