"""K-EXAONE: DeepSeek-V3's experts; RoPE rotates the layers with a window, and no others."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layer_types import read_mlp_types, write_mlp_types
from mixtura.shapes.families.llama import SLIDING
from mixtura.shapes.families.shared_experts import SigmoidExperts
from mixtura.shapes.families.windows import WindowsByType

_NOT_OF_EXAONE = ("n_shared_experts", "attention_bias")


class ExaoneMoe(SigmoidExperts, WindowsByType):
    """Each head's queries and keys are normed; by default 3 of 4 layers have a window."""

    model_type = "exaone_moe"
    architecture = "ExaoneMoeForCausalLM"
    drafting_keys = ("num_nextn_predict_layers",)
    left_out = MappingProxyType(
        {
            **SigmoidExperts.left_out,
            r"mtp\..*": "multi-token prediction, which drafts tokens beyond the next",
        }
    )
    rotates_full_layers = False
    count_key = "num_experts"
    shared_key = "num_shared_experts"
    bias_name = "e_score_correction_bias"
    defaults = MappingProxyType(
        {
            **{k: v for k, v in SigmoidExperts.defaults.items() if k not in _NOT_OF_EXAONE},
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "layer_types": None,
            "mlp_layer_types": None,
        }
    )

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        # transformers' class of this family has no key for biases of attention.
        self.keys(config).expect("attention_bias", False, None)
        return {**super().read_attention({**config, "attention_bias": False}), "norm": "head"}

    def default_types(self, keys: Keys) -> list[str]:
        pattern, layers = keys.integer("sliding_window_pattern"), keys.integer("num_hidden_layers")
        return [SLIDING if (i + 1) % pattern else "full_attention" for i in range(layers)]

    def read_placement(self, keys: Keys) -> Tree:
        return read_mlp_types(keys, keys.integer("first_k_dense_replace"))

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {"mlp_layer_types": write_mlp_types(decoder)}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["attention_bias"]
        return written
