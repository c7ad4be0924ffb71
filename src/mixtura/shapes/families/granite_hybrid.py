"""Granite 4: Mamba-2 with attention in a few layers; an MoE and a shared expert, or dense FFNs."""

from collections.abc import Iterator, Mapping
from math import inf
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.granite import GraniteMoe, GraniteMoeShared
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import outer_pieces
from mixtura.shapes.families.llama import Llama
from mixtura.shapes.families.mamba2 import mamba2_pieces, read_step_bounds, write_step_bounds
from mixtura.shapes.recurrence import Mamba2Shape

# Two names of each kind of layer: in published configs, and in transformers 5.
_MAMBA, _ATTENTION = ("mamba", "linear_attention"), ("attention", "full_attention")
_NOPE, _ROPE = "nope", "rope"


class GraniteMoeHybrid(GraniteMoeShared):
    """By default RoPE rotates no layer. With 0 experts, the shared MLP is a dense FFN."""

    model_type = "granitemoehybrid"
    architecture = "GraniteMoeHybridForCausalLM"
    defaults = MappingProxyType(
        {
            **GraniteMoe.defaults,
            "num_local_experts": 8,
            "shared_intermediate_size": 1024,
            "position_embedding_type": None,
            "layer_types": None,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_head": "auto",
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "time_step_limit": (0.0, inf),
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        if keys.given("num_local_experts") == 0:
            width = keys.integer("shared_intermediate_size")
            tree = Llama.read(self, {**config, "intermediate_size": width})
            tree |= self.read_multipliers(keys)
        else:
            tree = super().read(config)
        return {**tree, "recurrence": self.read_recurrence(keys, tree["norm"]["epsilon"])}

    def read_recurrence(self, keys: Keys, epsilon: float) -> Tree | None:
        layers = self.mamba_layers(keys)
        if not layers:
            return None
        heads, inner = keys.integer("mamba_n_heads"), self.read_inner(keys)
        auto = keys.given("mamba_d_head") == "auto"
        dim = inner // max(heads, 1) if auto else keys.integer("mamba_d_head")
        if heads * dim != inner:
            raise ConfigError(
                f"config.json: mamba_n_heads={heads} with mamba_d_head={dim} must make up "
                f"mamba_expand * hidden_size={inner}"
            )
        return {
            "kind": "mamba2",
            "heads": heads,
            "head_dim": dim,
            "state_dim": keys.integer("mamba_d_state"),
            "groups": keys.integer("mamba_n_groups"),
            "kernel": keys.integer("mamba_d_conv"),
            "bias": keys.flag("mamba_proj_bias"),
            "conv_bias": keys.flag("mamba_conv_bias"),
            "norm_epsilon": epsilon,
            "layers": layers,
            **read_step_bounds(keys),
        }

    def read_inner(self, keys: Keys) -> int:
        return int(keys.positive("mamba_expand") * keys.integer("hidden_size"))

    def mamba_layers(self, keys: Keys) -> list[int]:
        """The layers with Mamba-2; by default all of them, which Mixtura's decoder then refuses."""
        count = keys.integer("num_hidden_layers")
        named = keys.first("layer_types", "layers_block_type")
        types = keys.words(named, [_MAMBA[0]] * count)
        if len(types) != count:
            raise ConfigError(
                f"config.json: {named} has {len(types)} entries where num_hidden_layers is "
                f"{count}; it names each layer once"
            )
        unknown = sorted(set(types) - {*_MAMBA, *_ATTENTION})
        if unknown:
            raise ConfigError(
                f"config.json: {named} has {unknown[0]!r:.60} in a {self.model_type} model, whose "
                f"layers are {_MAMBA[0]} or {_ATTENTION[0]}"
            )
        return [layer for layer, kind in enumerate(types) if kind in _MAMBA]

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read_attention(config)
        keys.expect("position_embedding_type", None, _NOPE, _ROPE)
        if keys.given("position_embedding_type") == _ROPE:
            return tree
        return {**tree, "unrotated": list(range(keys.integer("num_hidden_layers")))}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        if decoder["moe"] is None:
            written = Llama.write(self, decoder)
            written |= self.write_multipliers(decoder["multipliers"])
            written |= {
                "num_local_experts": 0,
                "shared_intermediate_size": decoder["ffn_width"],
            }
        else:
            written = super().write(decoder)
        return {**written, **self.write_recurrence(decoder)}

    def write_recurrence(self, decoder: Mapping[str, Any]) -> Tree:
        recurrence, width = decoder["recurrence"], decoder["width"]
        layers = range(decoder["layers"])
        if recurrence is None:
            # transformers refuses sizes of Mamba-2 that do not fit the model's width, even if no
            # layer has Mamba-2. One head of the model's width fits.
            sizes = {"mamba_n_heads": 1, "mamba_d_head": width, "mamba_expand": 1}
            return {"layer_types": [_ATTENTION[0] for _ in layers], **sizes}
        if recurrence["kind"] != "mamba2":
            raise ConfigError(
                f"recurrence.kind={recurrence['kind']!r} has no place in a {self.model_type} "
                "config, whose recurrent mixer is mamba2; save it as another family"
            )
        inner = recurrence["heads"] * recurrence["head_dim"]
        if inner % width:
            raise ConfigError(
                f"recurrence.heads * recurrence.head_dim={inner} has no place in a "
                f"{self.model_type} config, which states it as a multiple of width={width}"
            )
        chosen = set(recurrence["layers"])
        return {
            "layer_types": [_MAMBA[0] if layer in chosen else _ATTENTION[0] for layer in layers],
            "mamba_n_heads": recurrence["heads"],
            "mamba_d_head": recurrence["head_dim"],
            "mamba_d_state": recurrence["state_dim"],
            "mamba_n_groups": recurrence["groups"],
            "mamba_d_conv": recurrence["kernel"],
            "mamba_expand": inner // width,
            "mamba_proj_bias": recurrence["bias"],
            "mamba_conv_bias": recurrence["conv_bias"],
            **write_step_bounds(recurrence),
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        kind = _NOPE if attention["unrotated"] else _ROPE
        return {**super().write_attention(attention), "position_embedding_type": kind}

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        yield from outer_pieces(shape)
        for layer in range(shape.layers):
            stored, ours = f"model.layers.{layer}.", f"blocks.{layer}."
            yield from self.norm_pieces(shape, stored, ours)
            mixer = shape.recurrence_of(layer)
            if mixer is None:
                yield from self.attention_pieces(shape, f"{stored}self_attn.", f"{ours}attention.")
            else:
                assert isinstance(mixer, Mamba2Shape), "this family reads no other"
                of_mixer = (f"{stored}mamba.", f"{ours}recurrence.")
                yield from mamba2_pieces(shape.width, mixer, *of_mixer)
            yield from self.ffn_pieces(shape, layer, stored, f"{ours}ffn.")

    def ffn_pieces(
        self, shape: DecoderShape, layer: int, stored: str, ours: str
    ) -> Iterator[Piece]:
        if shape.moe is not None:
            yield from super().ffn_pieces(shape, layer, stored, ours)
            return
        assert shape.ffn_width is not None, "`read` sets it"
        size, name = (2 * shape.ffn_width, shape.width), f"{stored}shared_mlp."
        yield Piece(f"{name}input_linear.weight", size, f"{ours}w_in")
        yield Piece(f"{name}output_linear.weight", (shape.width, shape.ffn_width), f"{ours}w_out")
