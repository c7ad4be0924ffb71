"""LFM2 and LFM2-MoE: gated short convolutions, with attention in a few layers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece, shape_of
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import attention_pieces, ffn_pieces, norm_pieces
from mixtura.shapes.families.llama import Llama
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.ledger import Buffer
from mixtura.shapes.moe import MoEShape
from mixtura.shapes.recurrence import ShortConvShape

_CONV, _ATTENTION = "conv", "full_attention"
_FFN = ("w1", "w3", "w2")
# Stored names of attention's tensors that differ from Llama's: Llama's name, and LFM2's name.
_RENAMED = {"q_norm": "q_layernorm", "k_norm": "k_layernorm", "o_proj": "out_proj"}


class Lfm2(Llama):
    """Each layer that `layer_types` calls conv has a short convolution in place of attention.

    In attention, each head's queries and keys are normed.
    """

    model_type = "lfm2"
    architecture = "Lfm2ForCausalLM"
    default_theta = 1e6
    defaults = MappingProxyType(
        {
            **{key: value for key, value in Llama.defaults.items() if key != "rms_norm_eps"},
            "norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "conv_bias": False,
            "conv_L_cache": 3,
            "layer_types": None,
            "full_attn_idxs": None,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        # This family has no such key, because its attention has no bias.
        keys.expect("attention_bias", False, None)
        same = {
            "rms_norm_eps": keys.number("norm_eps"),
            "tie_word_embeddings": keys.flag(keys.first("tie_embedding", "tie_word_embeddings")),
            "intermediate_size": self.read_ffn_width(keys),
        }
        tree = super().read({**config, **same})
        types = self.layer_types(keys)
        if len(types) != tree["layers"]:
            raise ConfigError(
                f"config.json: layer_types has {len(types)} entries where num_hidden_layers is "
                f"{tree['layers']}; it names each layer once"
            )
        unknown = sorted(set(types) - {_CONV, _ATTENTION})
        if unknown:
            raise ConfigError(
                f"config.json: layer_types has {unknown[0]!r:.60} in a {self.model_type} model, "
                f"whose layers are {_CONV} or {_ATTENTION}"
            )
        layers = [layer for layer, kind in enumerate(types) if kind == _CONV]
        conv = {"kernel": keys.integer("conv_L_cache"), "bias": keys.flag("conv_bias")}
        mixed = {"kind": "short_conv", **conv, "layers": layers} if layers else None
        return {**tree, "recurrence": mixed}

    def read_ffn_width(self, keys: Keys) -> int:
        """The FFN width. By default it is two thirds of `intermediate_size`, scaled and rounded up.

        The factor is `block_ffn_dim_multiplier`, and the result is a multiple of
        `block_multiple_of`.
        """
        width = keys.integer(keys.first("block_ff_dim", "intermediate_size"))
        if not keys.flag("block_auto_adjust_ff_dim"):
            return width
        width = int(2 * width / 3)
        if keys.given("block_ffn_dim_multiplier") is None:
            return width
        width = int(keys.positive("block_ffn_dim_multiplier") * width)
        multiple = keys.integer("block_multiple_of")
        return multiple * -(-width // multiple)

    def layer_types(self, keys: Keys) -> list[str]:
        """The kind of each layer.

        If `layer_types` is absent, `full_attn_idxs` lists the layers with attention. If both are
        absent, all layers have attention.
        """
        every = range(keys.integer("num_hidden_layers"))
        attending = set(keys.integers("full_attn_idxs", list(every)))
        return keys.words("layer_types", [_ATTENTION if n in attending else _CONV for n in every])

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "norm": "head"}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        for key in ("rms_norm_eps", "hidden_act"):
            del written[key]
        recurrence = decoder["recurrence"] or {"layers": (), "kernel": 3, "bias": False}
        conv = set(recurrence["layers"])
        return {
            **written,
            **self.write_ffn_width(),
            "norm_eps": decoder["norm"]["epsilon"],
            "conv_L_cache": recurrence["kernel"],
            "conv_bias": recurrence["bias"],
            "layer_types": [
                _CONV if layer in conv else _ATTENTION for layer in range(decoder["layers"])
            ],
        }

    def write_ffn_width(self) -> Tree:
        """The keys that make `read_ffn_width` return `intermediate_size` unchanged."""
        return {"block_auto_adjust_ff_dim": False}

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["attention_bias"]
        return written

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        table = "head.weight" if shape.tied_head else "embedding.weight"
        size = (shape.vocabulary, shape.width)
        yield Piece("model.embed_tokens.weight", size, table)
        yield from norm_pieces(shape.width, shape.norm, "model.embedding_norm", "norm")
        if not shape.tied_head:
            yield Piece("lm_head.weight", size, "head.weight")
        for layer in range(shape.layers):
            stored, ours = f"model.layers.{layer}.", f"blocks.{layer}."
            for theirs, own in {"operator": "attention", "ffn": "ffn"}.items():
                name = f"{stored}{theirs}_norm"
                yield from norm_pieces(shape.width, shape.norm, name, f"{ours}{own}_norm")
            if shape.recurrence_of(layer) is None:
                yield from self.attention_pieces(shape, f"{stored}self_attn.", f"{ours}attention.")
            else:
                yield from conv_pieces(shape, layer, f"{stored}conv.", f"{ours}recurrence.")
            yield from self.ffn_pieces(shape, layer, stored, f"{ours}ffn.")

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        assert isinstance(shape.attention, AttentionShape), "this family reads no other"
        for piece in attention_pieces(shape, shape.attention, stored, ours):
            name, _, weight = piece.stored.removeprefix(stored).partition(".")
            yield replace(piece, stored=f"{stored}{_RENAMED.get(name, name)}.{weight}")

    def ffn_pieces(
        self, shape: DecoderShape, layer: int, stored: str, ours: str
    ) -> Iterator[Piece]:
        assert shape.ffn_width is not None, "`read` sets it"
        width, name = shape.width, f"{stored}feed_forward."
        yield from ffn_pieces(width, shape.ffn_width, name, ours, _FFN)


class Lfm2Moe(Lfm2, SparseLlama):
    """All layers have MoEs, but for the first `num_dense_layers`.

    Scores are sigmoids, and experts are chosen with a choosing bias by default.
    """

    model_type = "lfm2_moe"
    architecture = "Lfm2MoeForCausalLM"
    moe_name = "feed_forward"
    expert_names = _FFN
    count_key = "num_experts"
    defaults = MappingProxyType(
        {
            **{
                key: value
                for key, value in Lfm2.defaults.items()
                if not key.startswith("block_") and key != "full_attn_idxs"
            },
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts_per_tok": 4,
            "num_experts": 32,
            "use_expert_bias": True,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": True,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read(config)
        # To renormalise, transformers divides by a token's sum of scores plus 1e-6, and Mixtura by
        # the sum plus 1e-20.
        router = {
            "kind": "sigmoid_topk",
            "choosing_bias": keys.flag("use_expert_bias"),
            "renormalise": keys.flag("norm_topk_prob"),
            "scale": keys.number("routed_scaling_factor"),
        }
        return {**tree, "moe": {**tree["moe"], "router": router}}

    def read_ffn_width(self, keys: Keys) -> int:
        return keys.integer("intermediate_size")

    def layer_types(self, keys: Keys) -> list[str]:
        return keys.words("layer_types")

    def read_placement(self, keys: Keys) -> Tree:
        return {"placement": {"first_dense": keys.integer("num_dense_layers")}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written, router = super().write(decoder), decoder["moe"]["router"]
        sparse = list(shape_of(decoder).moe_shapes)
        if sparse != list(range(sparse[0], decoder["layers"])):
            raise ConfigError(
                f"moe.placement has experts in layers {sparse}, and a {self.model_type} config "
                "has them in all layers from one on; save it as another family"
            )
        return {
            **written,
            "num_dense_layers": sparse[0],
            "use_expert_bias": router.get("choosing_bias", False),
            "routed_scaling_factor": router.get("scale", 1.0),
        }

    def write_ffn_width(self) -> Tree:
        return {}

    def ffn_pieces(
        self, shape: DecoderShape, layer: int, stored: str, ours: str
    ) -> Iterator[Piece]:
        moe = shape.moe_of(layer)
        if moe is None:
            yield from super().ffn_pieces(shape, layer, stored, ours)
        else:
            yield from self.moe_pieces(shape.width, moe, f"{stored}{self.moe_name}.", ours)

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        buffers = [one.name for one in moe.gate_tensors(width, "") if isinstance(one, Buffer)]
        if "bias" in buffers:
            yield Piece(f"{stored}expert_bias", (moe.num_experts,), f"{ours}router.bias")


def conv_pieces(shape: DecoderShape, layer: int, stored: str, ours: str) -> Iterator[Piece]:
    """The pieces of a short convolution, whose stored weight has shape (width, 1, kernel)."""
    recurrence, width = shape.recurrence_of(layer), shape.width
    assert isinstance(recurrence, ShortConvShape), "this family has no other"
    kernel = recurrence.kernel
    conv = (width, 1, kernel)
    yield Piece(f"{stored}in_proj.weight", (3 * width, width), f"{ours}projection.weight")
    yield Piece(f"{stored}conv.weight", conv, f"{ours}conv.weight", view=conv)
    yield Piece(f"{stored}out_proj.weight", (width, width), f"{ours}out.weight")
    if recurrence.bias:
        yield Piece(f"{stored}in_proj.bias", (3 * width,), f"{ours}projection.bias")
        yield Piece(f"{stored}conv.bias", (width,), f"{ours}conv.bias")
        yield Piece(f"{stored}out_proj.bias", (width,), f"{ours}out.bias")
