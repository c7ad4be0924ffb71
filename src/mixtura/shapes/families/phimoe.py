"""Phi-3.5-MoE: Mixtral's layout with LayerNorm, biases, SparseMixer's router and LongRoPE."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.mixtral import Mixtral
from mixtura.shapes.families.rotary import rope_keys


class PhiMoe(Mixtral):
    """Attention and the head have biases, and SparseMixer routes each token to two experts.

    A chosen expert's combine weight is its softmax probability among the experts whose logits are
    near the largest logit. The key `input_jitter_noise`, which adds noise to a layer's inputs in
    training, is not supported.
    """

    model_type = "phimoe"
    architecture = "PhimoeForCausalLM"
    in_fp32 = frozenset()
    defaults = MappingProxyType(
        {**Mixtral.defaults, "router_jitter_noise": 0.01, "lm_head_bias": False}
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read(config)
        keys.expect("num_experts_per_tok", 2)
        tolerance = keys.number("router_jitter_noise")
        tree["moe"] |= {"router": {"kind": "sparse_mixer", "tolerance": tolerance}}
        tree["norm"] |= {"kind": "layer", "bias": True}
        return {**tree, "ffn_width": None, "head_bias": keys.flag("lm_head_bias")}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        tree = super().read_attention(config)
        scaling = tree["rope_scaling"]
        if scaling is None:
            return tree
        if scaling["kind"] != "longrope":
            raise ConfigError(
                f"config.json: rope_type={scaling['kind']!r} in a {self.model_type} model; Mixtura "
                "runs it with rope_type='longrope' or 'default' alone"
            )
        keys = rope_keys(Keys(config, self.model_type))
        sizes = {f"{name}_amplitude": keys.number(f"{name}_mscale") for name in ("short", "long")}
        return {**tree, "rope_scaling": {**scaling, **sizes}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {
            **super().write(decoder),
            "router_jitter_noise": decoder["moe"]["router"]["tolerance"],
            "lm_head_bias": decoder["head_bias"],
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written, scaling = super().write_attention(attention), attention["rope_scaling"]
        if scaling is None:
            return written
        sizes = {f"{name}_mscale": scaling[f"{name}_amplitude"] for name in ("short", "long")}
        rope = {**written["rope_parameters"], **sizes}
        del rope["attention_factor"]
        original = rope["original_max_position_embeddings"]
        return {
            **written,
            "rope_parameters": rope,
            "original_max_position_embeddings": original,
        }
