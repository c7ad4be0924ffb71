"""Gemma 3: norms before and after attention and FFN, two RoPE bases, windows in 5 of 6 layers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import norm_pieces
from mixtura.shapes.families.llama import Llama, windows_by_type, write_window_types
from mixtura.shapes.families.rotary import read_rope, write_rope

_GLOBAL_BASE, _LOCAL_BASE, _PATTERN = 1_000_000.0, 10_000.0, 6
# Defaults of keys that are absent from `text_config`, the text part of a model with images.
_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}


class Gemma3Text(Llama):
    """The text model. Norms scale by weight + 1, and the embedding is scaled by sqrt(width).

    The FFN is gated by a tanh GELU. By default the head is tied.
    """

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    default_theta = _GLOBAL_BASE
    defaults = MappingProxyType(
        {
            **{key: value for key, value in Llama.defaults.items() if key != "hidden_act"},
            "num_key_value_heads": 4,
            "head_dim": 256,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "layer_types": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("hidden_activation", "gelu_pytorch_tanh")
        for key in ("final_logit_softcapping", "attn_logit_softcapping"):
            keys.expect(key, None)
        keys.expect("use_bidirectional_attention", False, None)
        tree = super().read(config)
        return {
            **tree,
            "norm": {**tree["norm"], "unit_offset": True},
            "post_norms": True,
            "multipliers": {"embedding": tree["width"] ** 0.5},
            "activation": "geglu_tanh",
            "tied_head": keys.flag("tie_word_embeddings"),
        }

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        whole, _ = _ropes(keys)
        flat = {k: v for k, v in config.items() if k not in ("rope_scaling", "rope_theta")}
        return {
            **super().read_attention({**flat, "rope_parameters": whole}),
            "local": self._windows(keys),
            "norm": "head",
            "scale": keys.positive("query_pre_attn_scalar") ** -0.5,
        }

    def _windows(self, keys: Keys) -> Tree | None:
        layers, pattern = keys.integer("num_hidden_layers"), self._pattern(keys)
        kinds = ["sliding" if (i + 1) % pattern else "full" for i in range(layers)]
        stated = {
            "use_sliding_window": True,
            "sliding_window": keys.given("sliding_window"),
            "num_hidden_layers": layers,
            "layer_types": keys.given("layer_types"),
        }
        types = [f"{kind}_attention" for kind in kinds]
        found = windows_by_type(Keys(stated, self.model_type), types)
        if found is None:
            return None
        _, local = _ropes(keys)
        rope = read_rope({"rope_parameters": local}, self.model_type)
        if rope["rope_scaling"] is not None:
            kind = local.get("rope_type")
            raise ConfigError(
                f"config.json: rope_parameters: sliding_attention: rope_type={kind!r} in a "
                f"{self.model_type} model; Mixtura runs it with rope_type='default' alone"
            )
        return {**found, "rope_base": rope["rope_base"]}

    def _pattern(self, keys: Keys) -> int:
        return keys.integer(
            keys.first("sliding_window_pattern", "_sliding_window_pattern"), _PATTERN
        )

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        del written["hidden_act"]
        return {**written, "hidden_activation": "gelu_pytorch_tanh"}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["rope_theta"]
        scale, local = attention["scale"] or attention["head_dim"] ** -0.5, attention["local"]
        base = local["rope_base"] if local else None
        return {
            **written,
            "query_pre_attn_scalar": round(scale**-2),
            "rope_parameters": {
                "full_attention": write_rope(attention),
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": base or attention["rope_base"],
                },
            },
        }

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        written = write_window_types(local, layers)
        # transformers makes an attention mask of this width even if no layer has a window, so the
        # width must be a number.
        window = written["sliding_window"] or self.defaults["sliding_window"]
        return {"sliding_window": window, "layer_types": written["layer_types"]}

    def norm_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        names = {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "attention_post_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "ffn_post_norm",
        }
        for theirs, name in names.items():
            yield from norm_pieces(shape.width, shape.norm, stored + theirs, ours + name)


class Gemma3(Gemma3Text):
    """A model of text and images, of which only the text part is read."""

    model_type = "gemma3"
    architecture = "Gemma3ForConditionalGeneration"
    left_out = MappingProxyType(
        {
            **Gemma3Text.left_out,
            r"vision_tower\..*": "reads images",
            r"multi_modal_projector\..*": "brings images into the text",
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        stated = Keys(config, self.model_type).mapping("text_config")
        return super().read({**_TEXT_DEFAULTS, **stated})

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        raise ConfigError(
            "a gemma3 model without its vision part would not load; save it as gemma3_text"
        )

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        for piece in super().pieces(shape):
            yield replace(piece, stored=f"language_model.{piece.stored}")


def _ropes(keys: Keys) -> tuple[Tree, Tree]:
    """The RoPE parameters of layers with full attention, and those of layers with a window."""
    given = keys.section("rope_parameters", {})
    whole = {"rope_theta": keys.number("rope_theta", _GLOBAL_BASE)}
    whole |= keys.mapping("rope_scaling", {})
    whole |= given.mapping("full_attention", {})
    local = {"rope_theta": keys.number("rope_local_base_freq", _LOCAL_BASE)}
    return whole, {**local, **given.mapping("sliding_attention", {})}
