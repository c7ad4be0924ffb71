"""Mellum: Qwen3-MoE's layers, but layers with a window have a RoPE base of their own."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layer_types import read_mlp_types, write_mlp_types
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.families.rotary import read_rope, write_rope
from mixtura.shapes.families.windows import WindowsByType

_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {_FULL: 500_000.0, _SLIDING: 10_000.0}


class Mellum(SparseLlama, WindowsByType):
    """Each head's queries and keys are normed; by default all layers have an MoE."""

    model_type = "mellum"
    architecture = "MellumForCausalLM"
    drafting_keys = ("num_nextn_predict_layers", "num_mtp_layers")
    left_out = MappingProxyType(
        {
            **SparseLlama.left_out,
            r"mtp\..*": "multi-token prediction, which drafts tokens beyond the next",
        }
    )
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "sliding_window": 1024,
            "layer_types": None,
            "mlp_layer_types": None,
        }
    )

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        tree, local = super().read_attention(config), self._section(config, _SLIDING)
        if tree["local"] is None:
            return {**tree, "norm": "head"}
        rope = read_rope({"rope_parameters": local}, self.model_type)
        if rope["rope_scaling"] is not None:
            raise ConfigError(
                f"config.json: rope_parameters: {_SLIDING}: rope_type={local.get('rope_type')!r} in"
                f" a {self.model_type} model; Mixtura runs it with rope_type='default' alone"
            )
        windows = {**tree["local"], "rope_base": rope["rope_base"]}
        return {**tree, "norm": "head", "local": windows}

    def read_rope(self, config: Mapping[str, Any], head_dim: int) -> Tree:
        whole = self._section(config, _FULL)
        context = config.get("max_position_embeddings")
        return read_rope(
            {"rope_parameters": whole, "max_position_embeddings": context}, self.model_type
        )

    def _section(self, config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """The RoPE parameters of the layers that `layer_types` calls `kind`."""
        stated = {"rope_type": "default", "rope_theta": _BASES[kind]}
        return self.keys(config).mapping("rope_parameters", {}).get(kind, stated)

    def read_placement(self, keys: Keys) -> Tree:
        return read_mlp_types(keys, first_dense=0)

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {**super().write(decoder), "mlp_layer_types": write_mlp_types(decoder)}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written, local = super().write_attention(attention), attention["local"]
        del written["rope_theta"]
        base = local["rope_base"] if local else None
        windows = {"rope_type": "default", "rope_theta": base or attention["rope_base"]}
        sections = {_FULL: write_rope(attention), _SLIDING: windows}
        return {**written, "rope_parameters": sections}
