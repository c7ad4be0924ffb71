"""AFMoE (Arcee's Trinity): gated attention, windows, norms on both sides, a sigmoid router."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import norm_pieces
from mixtura.shapes.families.llama import SLIDING
from mixtura.shapes.families.shared_experts import SigmoidExperts
from mixtura.shapes.families.windows import WindowsByType

_NOT_OF_AFMOE = ("n_shared_experts", "first_k_dense_replace", "norm_topk_prob", "n_group")
_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_mlp_layernorm": "ffn_norm",
    "post_mlp_layernorm": "ffn_post_norm",
}


class Afmoe(SigmoidExperts, WindowsByType):
    """RoPE rotates layers with a window only; `mup_enabled` scales embeddings by sqrt(width)."""

    model_type = "afmoe"
    architecture = "AfmoeForCausalLM"
    in_fp32 = frozenset({"scores", "weights"})
    rotates_full_layers = False
    count_key = "num_experts"
    shared_key = "num_shared_experts"
    gate_name = "router.gate"
    bias_name = "expert_bias"
    defaults = MappingProxyType(
        {
            **{k: v for k, v in SigmoidExperts.defaults.items() if k not in _NOT_OF_AFMOE},
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.0,
            "sliding_window": 1024,
            "global_attn_every_n_layers": 4,
            "layer_types": None,
            "mup_enabled": False,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read({**config, "norm_topk_prob": True})
        scaled = {"multipliers": {"embedding": tree["width"] ** 0.5}}
        return {**tree, "post_norms": True, **(scaled if keys.flag("mup_enabled") else {})}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        # With biases transformers' gate has none, and the decoder's gate has one.
        self.keys(config).expect("attention_bias", False)
        return {**super().read_attention(config), "norm": "head", "output_gate": True}

    def read_router(self, keys: Keys) -> Tree:
        scale = keys.number("route_scale")
        return {"kind": "sigmoid_topk", "choosing_bias": True, "renormalise": True, "scale": scale}

    def default_types(self, keys: Keys) -> list[str]:
        every = keys.integer("global_attn_every_n_layers")
        layers = keys.integer("num_hidden_layers")
        return [SLIDING if (i + 1) % every else "full_attention" for i in range(layers)]

    def read_placement(self, keys: Keys) -> Tree:
        return {"placement": {"first_dense": keys.integer("num_dense_layers")}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written, scale = super().write(decoder), decoder["multipliers"]["embedding"]
        if scale not in (1.0, decoder["width"] ** 0.5):
            raise ConfigError(
                f"multipliers.embedding={scale:g} is neither 1 nor sqrt(width), as a "
                f"{self.model_type} config has it; save it as another family"
            )
        del written["norm_topk_prob"]
        return {**written, "mup_enabled": scale != 1}

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {"num_dense_layers": decoder["moe"]["placement"]["first_dense"]}

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        return {"route_scale": router["scale"]}

    def norm_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        for theirs, name in _NORMS.items():
            yield from norm_pieces(shape.width, shape.norm, stored + theirs, ours + name)

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().attention_pieces(shape, stored, ours)
        assert isinstance(shape.attention, AttentionShape), "this family reads no other"
        queries, _, _ = shape.attention.projected
        size = (queries, shape.width)
        yield Piece(f"{stored}gate_proj.weight", size, f"{ours}output_gate.weight")
