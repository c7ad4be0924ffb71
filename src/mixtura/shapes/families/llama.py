"""Llama, and the dense families that differ from it in a few keys: Mistral, Qwen2, Qwen3."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Family, Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import (
    attention_pieces,
    ffn_pieces,
    norm_pieces,
    outer_pieces,
)
from mixtura.shapes.families.rotary import read_rope, write_rope

SLIDING = "sliding_attention"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Llama(Family):
    """Pre-norm blocks, grouped-query attention and SwiGLU; subclasses override what differs."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    left_out = MappingProxyType({r".*\.rotary_emb\.inv_freq": "follows from the config"})
    attention_kind: ClassVar[str] = "grouped"
    default_theta: ClassVar[float] = 10_000.0
    defaults = MappingProxyType(
        {
            "hidden_act": "silu",
            "mlp_bias": False,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "num_key_value_heads": None,
            "head_dim": None,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("hidden_act", "silu")
        keys.expect("mlp_bias", False)
        return {
            "width": keys.integer("hidden_size"),
            "vocabulary": keys.integer("vocab_size"),
            "context": keys.integer("max_position_embeddings"),
            "layers": keys.integer("num_hidden_layers"),
            "attention": self.read_attention(config),
            "norm": {"epsilon": keys.number("rms_norm_eps")},
            "ffn_width": keys.integer("intermediate_size"),
            "activation": "swiglu",
            "tied_head": keys.flag("tie_word_embeddings"),
        }

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        heads = keys.integer("num_attention_heads")
        head_dim = keys.integer("head_dim", keys.integer("hidden_size") // heads)
        bias = keys.flag("attention_bias")
        return {
            "heads": heads,
            "kv_heads": keys.integer("num_key_value_heads", heads),
            "head_dim": head_dim,
            "input_bias": bias,
            "output_bias": bias,
            "local": self.read_windows(keys),
            **self.read_rope(config, head_dim),
        }

    def read_rope(self, config: Mapping[str, Any], head_dim: int) -> Tree:
        return read_rope(config, self.model_type, self.default_theta)

    def read_windows(self, keys: Keys) -> Tree | None:
        """The layers with a window, and the window. Llama has no windows, so this returns None."""
        return None

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        attention = decoder["attention"]
        if attention["kind"] != self.attention_kind:
            raise ConfigError(
                f"attention.kind={attention['kind']!r} has no place in a {self.model_type} config, "
                f"whose attention is {self.attention_kind}; save it as another family"
            )
        if decoder["ffn_width"] is None:
            raise ConfigError(
                f"a {self.model_type} model has dense FFNs, and this decoder has an MoE in every "
                "layer; save it as a family of MoEs, such as mixtral"
            )
        windows = self.write_windows(attention.get("local"), decoder["layers"])
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": decoder["width"],
            "vocab_size": decoder["vocabulary"],
            "max_position_embeddings": decoder["context"],
            "num_hidden_layers": decoder["layers"],
            "intermediate_size": decoder["ffn_width"],
            "rms_norm_eps": decoder["norm"]["epsilon"],
            "tie_word_embeddings": decoder["tied_head"],
            **self.write_attention(attention),
            **windows,
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        return {
            "num_attention_heads": attention["heads"],
            "num_key_value_heads": attention["kv_heads"],
            "head_dim": attention["head_dim"],
            "attention_bias": attention["input_bias"],
            "rope_theta": attention["rope_base"],
            "rope_parameters": write_rope(attention),
        }

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        return {}

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        yield from outer_pieces(shape)
        for layer in range(shape.layers):
            stored, ours = f"model.layers.{layer}.", f"blocks.{layer}."
            yield from self.norm_pieces(shape, stored, ours)
            yield from self.attention_pieces(shape, f"{stored}self_attn.", f"{ours}attention.")
            yield from self.ffn_pieces(shape, layer, stored, f"{ours}ffn.")

    def copies(self, ours: Mapping[str, str]) -> Mapping[str, str]:
        """A checkpoint may repeat a tied head under the head's name."""
        tied = [stored for stored, own in ours.items() if own == "head.weight"]
        return {
            name.removesuffix(_EMBEDDING) + _HEAD: name
            for name in tied
            if name.endswith(_EMBEDDING)
        }

    def norm_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        names = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
        for theirs, name in names.items():
            yield from norm_pieces(shape.width, shape.norm, stored + theirs, ours + name)

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        assert isinstance(shape.attention, AttentionShape), "this family reads no other"
        yield from attention_pieces(shape, shape.attention, stored, ours)

    def ffn_pieces(
        self,
        shape: DecoderShape,
        layer: int,
        stored: str,
        ours: str,
    ) -> Iterator[Piece]:
        assert shape.ffn_width is not None, "`read` sets it"
        yield from ffn_pieces(shape.width, shape.ffn_width, f"{stored}mlp.", ours)


class Mistral(Llama):
    """Llama with a sliding window in every layer, or in none."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    defaults = MappingProxyType(
        {**Llama.defaults, "num_key_value_heads": 8, "sliding_window": 4096}
    )

    def read_windows(self, keys: Keys) -> Tree | None:
        return window_of_all(keys)

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        return {"sliding_window": local["window"] if local else None}


class Qwen2(Llama):
    """Llama with biases only on queries, keys and values, and windows in some layers."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    defaults = MappingProxyType(
        {
            **Llama.defaults,
            "num_key_value_heads": 32,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        }
    )

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        bias = self.keys(config).flag("qkv_bias", True)
        return {**super().read_attention(config), "input_bias": bias, "output_bias": False}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["attention_bias"]
        return written

    def read_windows(self, keys: Keys) -> Tree | None:
        return windows_by_type(keys, self.layer_types(keys))

    def layer_types(self, keys: Keys) -> list[str]:
        """The default of `layer_types`: layers from `max_window_layers` on have a window."""
        first, layers = keys.integer("max_window_layers"), keys.integer("num_hidden_layers")
        return ["full_attention" if layer < first else SLIDING for layer in range(layers)]

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        return write_window_types(local, layers)


class Qwen3(Qwen2):
    """Llama's biases, Qwen2's windows, and a norm on each head's queries and keys."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = MappingProxyType({**Qwen2.defaults, "head_dim": 128})

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**Llama.read_attention(self, config), "norm": "head"}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        return Llama.write_attention(self, attention)


def window_of_all(keys: Keys) -> Tree | None:
    """The same window for all layers; None if `sliding_window` is null or 0."""
    window = keys.integer("sliding_window", 0)
    return (
        {"window": window, "layers": range(keys.integer("num_hidden_layers"))} if window else None
    )


def windows_by_type(keys: Keys, types: list[str]) -> Tree | None:
    """A window for the layers that `layer_types` marks as sliding; None if there are none.

    `types` is the default of `layer_types`.
    """
    window = keys.integer("sliding_window", 0)
    if not keys.flag("use_sliding_window") or not window:
        return None
    named, layers = keys.words("layer_types", types), keys.integer("num_hidden_layers")
    if len(named) != layers:
        raise ConfigError(
            f"config.json: layer_types has {len(named)} entries where num_hidden_layers is "
            f"{layers}; it names each layer once"
        )
    chosen = [layer for layer, kind in enumerate(named) if kind == SLIDING]
    return {"window": window, "layers": chosen} if chosen else None


def write_window_types(local: Mapping[str, Any] | None, layers: int) -> Tree:
    """The config keys for layers with a window, the reverse of `windows_by_type`."""
    chosen = set(local["layers"]) if local else set()
    types = ["sliding" if layer in chosen else "full" for layer in range(layers)]
    return {
        "use_sliding_window": local is not None,
        "sliding_window": local["window"] if local else None,
        "max_window_layers": min(chosen, default=layers),
        "layer_types": [f"{kind}_attention" for kind in types],
    }
