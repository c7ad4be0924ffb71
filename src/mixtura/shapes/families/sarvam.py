"""Sarvam's two MoEs: one in DeepSeek-V3's layout, one in GLM-4.5's with fused projections."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.deepseek import DeepseekV3
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.glm import Glm4Moe

# The authors' names of config keys, and transformers' names of the same keys.
_RENAMED = {
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "use_qkv_bias": "attention_bias",
}
_FUSED = {"qkv": "query_key_value", "out": "dense"}
_NORMS = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}


def renamed(config: Mapping[str, Any]) -> Tree:
    """The config, with transformers' names of keys."""
    ours = {_RENAMED.get(key, key): value for key, value in config.items()}
    scaling = ours.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling.get("type") == "deepseek_yarn":
        ours["rope_scaling"] = {**scaling, "type": "yarn"}
    return ours


class SarvamMla(DeepseekV3):
    """DeepSeek-V3 with one group of experts by default, and no latent of queries."""

    model_type = "sarvam_mla"
    defaults = MappingProxyType(
        {
            **DeepseekV3.defaults,
            "num_key_value_heads": None,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "num_mtp_layers": 0,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        return super().read(renamed(config))


class SarvamMoe(Glm4Moe):
    """GLM-4.5's model with whole heads rotated; queries, keys and values are one tensor."""

    model_type = "sarvam_moe"
    default_share = 1.0
    default_theta = 8e6
    bias_name = "gate.expert_bias"
    defaults = MappingProxyType(
        {
            **Glm4Moe.defaults,
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts_per_tok": 6,
            "routed_scaling_factor": 2.5,
            "use_qk_norm": True,
            "num_mtp_layers": 0,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        return super().read(renamed(config))

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        for piece in super().pieces(shape):
            name = piece.stored.replace("model.embed_tokens.", "model.word_embeddings.")
            yield replace(piece, stored=name)

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        heads = shape.attention
        assert isinstance(heads, AttentionShape), "this family reads no other"
        for weight in heads.weights(shape.width, ""):
            name, _, kind = weight.name.rpartition(".")
            theirs = (_FUSED | _NORMS)[name]
            place = stored.replace(".self_attn.", ".attention.")
            yield Piece(f"{place}{theirs}.{kind}", weight.shape, f"{ours}{weight.name}")
