"""Hunyuan-A13B and Hunyuan 3: a shared expert beside routed ones, queries and keys normed."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layer_types import read_mlp_types, write_mlp_types
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.llama import Llama
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.families.rotary import read_rope, rope_keys
from mixtura.shapes.families.shared_experts import SigmoidExperts
from mixtura.shapes.moe import MoEShape

_NORMS = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}


class HunyuanMoeV1(SparseLlama):
    """Combine weights are renormalised softmax scores; queries and keys are normed after RoPE.

    The shared expert is as wide as a routed expert. `alpha` of the RoPE section raises the RoPE
    base; `write` states the raised base, without `alpha`.
    """

    model_type = "hunyuan_v1_moe"
    architecture = "HunYuanMoEV1ForCausalLM"
    in_fp32 = frozenset({"gates", "weights"})
    count_key = "num_experts"
    width_key = "intermediate_size"
    gate_name = "gate.wg"
    defaults = MappingProxyType(
        {**SparseLlama.defaults, "rms_norm_eps": 1e-5, "num_experts": 1, "moe_topk": 1}
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        # transformers ignores these keys and computes as these values state.
        keys.expect("use_qk_norm", True)
        keys.expect("use_cla", False, None)
        keys.expect("moe_layer_num_skipped", 0, None)
        width = keys.integer("intermediate_size")
        for key, value in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
            _same_of_all(keys, key, value)
        chosen = _same_of_all(keys, "moe_topk", None)
        experts = _same_of_all(keys, "num_experts", None)
        stated = {"num_experts_per_tok": chosen, "num_experts": experts, "norm_topk_prob": True}
        tree = super().read({**config, **stated})
        tree["moe"] |= {"shared_width": width}
        return {**tree, "ffn_width": None}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "norm": "head", "norm_after_rotation": True}

    def read_rope(self, config: Mapping[str, Any], head_dim: int) -> Tree:
        section = rope_keys(self.keys(config))
        alpha = section.number("alpha", 0.0)
        kind = section.given("rope_type") or section.given("type")
        if not alpha or kind != "dynamic":
            return super().read_rope(config, head_dim)
        base = section.number("rope_theta", self.keys(config).number("rope_theta", 1e4))
        return read_rope({"rope_theta": base * alpha ** (head_dim / (head_dim - 2))}, "hunyuan")

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        if moe["shared_width"] != moe["expert_width"]:
            raise ConfigError(
                f"moe.shared_width={moe['shared_width']} is not expert_width={moe['expert_width']},"
                f" as a {self.model_type} config has it; save it as another family"
            )
        written = super().write({**decoder, "ffn_width": moe["expert_width"]})
        for key in ("norm_topk_prob", "num_experts_per_tok"):
            del written[key]
        return {**written, "moe_topk": moe["top_k"]}

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        for piece in super().attention_pieces(shape, stored, ours):
            name = piece.stored.removeprefix(stored).removesuffix(".weight")
            theirs = f"{stored}{_NORMS.get(name, name)}.weight"
            yield replace(piece, stored=theirs) if name in _NORMS else piece

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield from ffn_pieces(width, moe.shared_width, f"{stored}shared_mlp.", f"{ours}shared.")


def _same_of_all(keys: Keys, key: str, needed: int | None) -> int:
    """The number that a key states for all layers, once or in a list.

    Raises ConfigError if the layers' numbers differ, or if they are not `needed`.
    """
    given = keys.given(key, needed)
    each = set(keys.integers(key)) if isinstance(given, list) else {given}
    if len(each) != 1 or needed not in (None, *each):
        expected = "one number for all layers" if needed is None else needed
        raise ConfigError(f"config.json: {key}={given!r:.60} should be {expected}")
    return keys.with_value(key, value=each.pop()).integer(key)


class HyV3(SigmoidExperts):
    """Hunyuan 3: sigmoid scores, a choosing bias, weights renormalised and scaled."""

    model_type = "hy_v3"
    architecture = "HYV3ForCausalLM"
    drafting_keys = ("num_nextn_predict_layers",)
    default_theta = 11_158_840.0
    count_key = "num_experts"
    shared_key = "num_shared_experts"
    shared_name = "shared_mlp"
    gate_name = "router.gate"
    bias_name = "expert_bias"
    defaults = MappingProxyType(
        {
            **Llama.defaults,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
            "mlp_layer_types": None,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        return super().read({**config, "norm_topk_prob": True})

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "norm": "head"}

    def read_router(self, keys: Keys) -> Tree:
        scale = keys.number("router_scaling_factor")
        return {"kind": "sigmoid_topk", "choosing_bias": True, "renormalise": True, "scale": scale}

    def read_placement(self, keys: Keys) -> Tree:
        """If `mlp_layer_types` is absent, all layers but the first have MoEs."""
        if keys.given("mlp_layer_types") is None:
            keys.expect("first_k_dense_replace", 1, None)
        return read_mlp_types(keys, first_dense=1)

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        del written["norm_topk_prob"]
        return written

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {"mlp_layer_types": write_mlp_types(decoder)}

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        return {"router_scaling_factor": router["scale"]}
