"""Mixtral, and the MoE families in Llama's layout: OLMoE, Qwen2-MoE, Qwen3-MoE."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece, shape_of
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import GATE_UP_DOWN, ffn_pieces, norm_pieces
from mixtura.shapes.families.llama import (
    SLIDING,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    window_of_all,
)
from mixtura.shapes.moe import MoEShape


class SparseLlama(Llama):
    """Llama with an MoE in some or all layers; each expert is stored in tensors of its own."""

    moe_name: ClassVar[str] = "mlp"
    gate_name: ClassVar[str] = "gate"
    expert_names: ClassVar[tuple[str, str, str]] = GATE_UP_DOWN
    count_key: ClassVar[str] = "num_local_experts"
    width_key: ClassVar[str] = "moe_intermediate_size"
    defaults = MappingProxyType({**Llama.defaults, "norm_topk_prob": False})

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        moe = {
            "num_experts": keys.integer(keys.first(self.count_key, "num_experts")),
            "top_k": keys.integer("num_experts_per_tok"),
            "expert_width": keys.integer(self.width_key),
            "activation": "swiglu",
            "router": {
                "kind": "softmax_topk",
                "renormalise": keys.flag("norm_topk_prob"),
            },
            **self.read_placement(keys),
        }
        return {**super().read(config), "moe": moe}

    def read_placement(self, keys: Keys) -> Tree:
        """The setting `placement` of the MoEs; empty if all layers have an MoE."""
        return {}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        if moe is None:
            raise ConfigError(
                f"a {self.model_type} model has an MoE, and this decoder none; save it as llama, "
                "or as the family it came from"
            )
        return {
            **super().write({**decoder, "ffn_width": decoder["ffn_width"] or moe["expert_width"]}),
            self.count_key: moe["num_experts"],
            "num_experts_per_tok": moe["top_k"],
            self.width_key: moe["expert_width"],
            "norm_topk_prob": moe["router"].get("renormalise", False),
        }

    def ffn_pieces(
        self, shape: DecoderShape, layer: int, stored: str, ours: str
    ) -> Iterator[Piece]:
        moe = shape.moe_of(layer)
        if moe is None:
            yield from super().ffn_pieces(shape, layer, stored, ours)
        else:
            yield from self.moe_pieces(shape.width, moe, f"{stored}{self.moe_name}.", ours)

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        size = (moe.num_experts, width)
        yield Piece(f"{stored}{self.gate_name}.weight", size, f"{ours}router.weight")
        for expert in range(moe.num_experts):
            yield from ffn_pieces(
                width,
                moe.expert_width,
                f"{stored}experts.{expert}.",
                f"{ours}experts.",
                self.expert_names,
                expert,
            )


class Mixtral(SparseLlama, Mistral):
    """Every layer has an MoE with renormalised weights; all layers have the same window or none."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    in_fp32 = frozenset({"weights"})
    default_theta = 1e6
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "sliding_window": None,
            "num_experts_per_tok": 2,
        }
    )
    moe_name = "block_sparse_moe"
    expert_names = ("w1", "w3", "w2")
    width_key = "intermediate_size"

    def read(self, config: Mapping[str, Any]) -> Tree:
        return super().read({**config, "norm_topk_prob": True})

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write({**decoder, "ffn_width": decoder["moe"]["expert_width"]})
        del written["norm_topk_prob"]
        return written


class Olmoe(SparseLlama):
    """Queries and keys are normed over all heads at once.

    By default combine weights are softmax scores, not renormalised.
    """

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    defaults = MappingProxyType(
        {**SparseLlama.defaults, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8, "clip_qkv": None}
    )
    count_key = "num_experts"
    width_key = "intermediate_size"

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        clip = self.keys(config).given("clip_qkv")
        return {**super().read_attention(config), "norm": "all", "clip": clip}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = {**super().write_attention(attention), "clip_qkv": attention["clip"]}
        del written["head_dim"]
        return written

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return super().write({**decoder, "ffn_width": decoder["moe"]["expert_width"]})


class FlexOlmo(Olmoe):
    """OLMoE's layer, but the outputs of attention and FFN are normed instead of their inputs."""

    model_type = "flex_olmo"
    architecture = "FlexOlmoForCausalLM"
    in_fp32 = frozenset({"rotation"})
    default_theta = 500_000.0
    defaults = MappingProxyType(
        {
            **{key: value for key, value in Olmoe.defaults.items() if key != "clip_qkv"},
            "rms_norm_eps": 1e-6,
            "num_experts_per_tok": 5,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read(config), "pre_norms": False, "post_norms": True}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        # transformers' default for pad_token_id is 100277, which a small vocabulary does not have.
        return {**super().write(decoder), "pad_token_id": None}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["clip_qkv"]
        return written

    def norm_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        for branch, name in (("attention", "attention"), ("feedforward", "ffn")):
            theirs = f"{stored}post_{branch}_layernorm"
            yield from norm_pieces(shape.width, shape.norm, theirs, f"{ours}{name}_post_norm")


class Qwen2Moe(SparseLlama, Qwen2):
    """Qwen2 with MoEs in some layers; each MoE has a gated shared expert."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            **Qwen2.defaults,
            "num_key_value_heads": 16,
            "num_experts_per_tok": 4,
            "qkv_bias": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
        }
    )
    count_key = "num_experts"

    def read(self, config: Mapping[str, Any]) -> Tree:
        tree = super().read(config)
        width = self.keys(config).integer("shared_expert_intermediate_size")
        tree["moe"] |= {"shared_width": width, "shared_gate": True}
        return tree

    def layer_types(self, keys: Keys) -> list[str]:
        """The default of `layer_types`: even layers before `max_window_layers` have a window."""
        end, layers = keys.integer("max_window_layers"), keys.integer("num_hidden_layers")
        return [
            SLIDING if layer < end and layer % 2 == 0 else "full_attention"
            for layer in range(layers)
        ]

    def read_placement(self, keys: Keys) -> Tree:
        return read_sparse_step(keys)

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {
            **super().write(decoder),
            **write_sparse_step(decoder),
            "shared_expert_intermediate_size": decoder["moe"]["shared_width"],
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = {**super().write_attention(attention), "qkv_bias": attention["input_bias"]}
        del written["head_dim"]
        return written

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield from gated_shared_pieces(width, moe, stored, ours)


class Qwen3Moe(SparseLlama, Qwen3):
    """Qwen3 with MoEs in some layers; `norm_topk_prob` states whether weights are renormalised."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_key_value_heads": 4,
            "num_experts_per_tok": 8,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
        }
    )

    def read_windows(self, keys: Keys) -> Tree | None:
        return window_of_all(keys) if keys.flag("use_sliding_window") else None

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        window = local["window"] if local else None
        return {"sliding_window": window, "use_sliding_window": window is not None}

    def read_placement(self, keys: Keys) -> Tree:
        return read_sparse_step(keys)

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {**super().write(decoder), **write_sparse_step(decoder)}


def gated_shared_pieces(width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
    """The pieces of a Qwen MoE's shared expert and of its gate."""
    yield from ffn_pieces(width, moe.shared_width, f"{stored}shared_expert.", f"{ours}shared.")
    yield Piece(f"{stored}shared_expert_gate.weight", (1, width), f"{ours}shared_gate.weight")


def read_sparse_step(keys: Keys) -> Tree:
    """The MoE layers that `decoder_sparse_step` and `mlp_only_layers` of a Qwen config give."""
    dense, step = set(keys.integers("mlp_only_layers", [])), keys.integer("decoder_sparse_step")
    layers = keys.integer("num_hidden_layers")
    if not dense:
        return {"placement": {"every": step}}
    only = [layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0]
    return {"placement": {"only": only}}


def write_sparse_step(decoder: Mapping[str, Any]) -> Tree:
    """The reverse of `read_sparse_step`."""
    placement = decoder["moe"]["placement"]
    if placement["only"] is None and placement["first_dense"] == 0:
        return {"decoder_sparse_step": placement["every"], "mlp_only_layers": []}
    sparse = shape_of(decoder).moe_shapes
    dense = [layer for layer in range(decoder["layers"]) if layer not in sparse]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
