"""GLM-4.5 to 4.7 and Solar Open: grouped-query attention with DeepSeek-V3's experts.

GLM-4.7-Flash has DeepSeek-V3's latent attention too.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.families.deepseek import DeepseekV3
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layer_types import read_mlp_types, write_mlp_types
from mixtura.shapes.families.partial_rotary import PartlyRotated
from mixtura.shapes.families.shared_experts import SigmoidExperts

# Keys of DeepSeek-V3 that transformers' class of GLM-4.7-Flash does not have; its `mlp_layer_types`
# lists the MoE layers.
_NOT_OF_LITE = ("first_k_dense_replace", "num_mtp_layers")


class Glm4Moe(SigmoidExperts, PartlyRotated):
    """By default RoPE rotates half of each head; queries and keys are normed if `use_qk_norm`."""

    model_type = "glm4_moe"
    architecture = "Glm4MoeForCausalLM"
    drafting_keys = ("num_nextn_predict_layers", "num_mtp_layers")
    default_share = 0.5
    defaults = MappingProxyType(
        {
            **SigmoidExperts.defaults,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "use_qk_norm": False,
            "num_mtp_layers": 1,
        }
    )

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        norm = "head" if self.keys(config).flag("use_qk_norm") else None
        return {**super().read_attention(config), "output_bias": False, "norm": norm}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {**super().write(decoder), "num_nextn_predict_layers": 0}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        normed = attention["norm"] == "head"
        return {**super().write_attention(attention), "use_qk_norm": normed}


class SolarOpen(SigmoidExperts):
    """GLM-4.5 with an MoE in every layer, whole heads rotated, and queries and keys not normed."""

    model_type = "solar_open"
    architecture = "SolarOpenForCausalLM"
    default_theta = 1e6
    defaults = MappingProxyType(
        {
            **SigmoidExperts.defaults,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("use_qk_norm", False, None)
        # transformers' class of this family has no dense layers, and so no key for their width.
        width = keys.integer("moe_intermediate_size")
        return {**super().read({**config, "intermediate_size": width}), "ffn_width": None}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "output_bias": False}

    def read_placement(self, keys: Keys) -> Tree:
        keys.expect("first_k_dense_replace", 0, None)
        keys.expect("moe_layer_freq", 1, None)
        return {}

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {}


class Glm4MoeLite(DeepseekV3):
    """DeepSeek-V3 with one group of experts by default; `mlp_layer_types` lists the MoE layers."""

    model_type = "glm4_moe_lite"
    architecture = "Glm4MoeLiteForCausalLM"
    drafting_keys = ("num_nextn_predict_layers",)
    defaults = MappingProxyType(
        {
            **{key: value for key, value in DeepseekV3.defaults.items() if key not in _NOT_OF_LITE},
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 20,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.8,
            "mlp_layer_types": None,
        }
    )

    def read_placement(self, keys: Keys) -> Tree:
        """If `mlp_layer_types` is absent, all layers but the first have MoEs.

        transformers ignores the other keys of placement; values that differ are refused here.
        """
        if keys.given("mlp_layer_types") is None:
            keys.expect("first_k_dense_replace", 1, None)
            keys.expect("moe_layer_freq", 1, None)
        return read_mlp_types(keys, first_dense=1)

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {"mlp_layer_types": write_mlp_types(decoder)}
