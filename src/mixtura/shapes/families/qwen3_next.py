"""Qwen3-Next, Qwen3.5 and Qwen3.6: Gated DeltaNet, with gated attention in every fourth layer."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import attention_pieces, outer_pieces
from mixtura.shapes.families.mixtral import (
    SparseLlama,
    gated_shared_pieces,
    read_sparse_step,
    write_sparse_step,
)
from mixtura.shapes.families.partial_rotary import PartlyRotated
from mixtura.shapes.moe import MoEShape
from mixtura.shapes.recurrence import GatedDeltaShape

_DELTA, _ATTENTION = "linear_attention", "full_attention"
# Mixtura's field for a size, and the key of the same size in a config.json.
_SIZES = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}
_DRAFTING = {r"mtp\..*": "multi-token prediction, which drafts tokens beyond the next"}


class Qwen3Next(PartlyRotated, SparseLlama):
    """Norms scale by weight + 1, and the shared expert has a gate.

    By default RoPE rotates a quarter of each head.
    """

    model_type = "qwen3_next"
    architecture = "Qwen3NextForCausalLM"
    left_out = MappingProxyType({**SparseLlama.left_out, **_DRAFTING})
    count_key = "num_experts"
    default_share = 0.25
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "intermediate_size": 5632,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "num_experts": 512,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
            "layer_types": None,
            "full_attention_interval": 4,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read(config)
        shared = keys.integer("shared_expert_intermediate_size")
        tree["moe"] |= {"shared_width": shared, "shared_gate": True}
        tree["norm"] |= {"unit_offset": True}
        return {**tree, "recurrence": self.read_recurrence(keys)}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "norm": "head", "output_gate": True}

    def read_placement(self, keys: Keys) -> Tree:
        return read_sparse_step(keys)

    def read_recurrence(self, keys: Keys) -> Tree | None:
        count, interval = keys.integer("num_hidden_layers"), keys.integer("full_attention_interval")
        types = keys.words(
            "layer_types", [_DELTA if (n + 1) % interval else _ATTENTION for n in range(count)]
        )
        if len(types) != count:
            raise ConfigError(
                f"config.json: layer_types has {len(types)} entries where num_hidden_layers is "
                f"{count}; it names each layer once"
            )
        unknown = sorted(set(types) - {_DELTA, _ATTENTION})
        if unknown:
            raise ConfigError(
                f"config.json: layer_types has {unknown[0]!r:.60} in a {self.model_type} model, "
                f"whose layers are {_DELTA} or {_ATTENTION}"
            )
        layers = [layer for layer, kind in enumerate(types) if kind == _DELTA]
        if not layers:
            return None
        sizes = {own: keys.integer(key) for own, key in _SIZES.items()}
        epsilon = keys.number("rms_norm_eps")
        return {"kind": "gated_delta", "layers": layers, **sizes, "norm_epsilon": epsilon}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        recurrence = decoder["recurrence"] or {"layers": ()}
        kinds = [_ATTENTION, _DELTA]
        return {
            **super().write(decoder),
            **self.write_placement(decoder),
            **{key: recurrence[own] for own, key in _SIZES.items() if own in recurrence},
            "shared_expert_intermediate_size": decoder["moe"]["shared_width"],
            "layer_types": [kinds[n in recurrence["layers"]] for n in range(decoder["layers"])],
        }

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return write_sparse_step(decoder)

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        yield from outer_pieces(shape)
        for layer in range(shape.layers):
            stored, ours = f"model.layers.{layer}.", f"blocks.{layer}."
            yield from self.norm_pieces(shape, stored, ours)
            delta = shape.recurrence_of(layer)
            if isinstance(delta, GatedDeltaShape):
                yield from self.delta_pieces(
                    shape.width, delta, f"{stored}linear_attn.", f"{ours}recurrence."
                )
            else:
                yield from self.attention_pieces(shape, f"{stored}self_attn.", f"{ours}attention.")
            yield from self.ffn_pieces(shape, layer, stored, f"{ours}ffn.")

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        """The stored `q_proj` has, for each head, the rows of its query, then those of its gate."""
        assert isinstance(shape.attention, AttentionShape), "this family reads no other"
        for piece in attention_pieces(shape, shape.attention, stored, ours):
            if piece.stored.startswith(f"{stored}q_proj."):
                yield from _queries_and_gates(piece, shape.attention, ours)
            else:
                yield piece

    def delta_pieces(
        self, width: int, delta: GatedDeltaShape, stored: str, ours: str
    ) -> Iterator[Piece]:
        yield from self.projection_pieces(width, delta, stored, ours)
        conv = (delta.channels, 1, delta.kernel)
        yield Piece(f"{stored}conv1d.weight", conv, f"{ours}conv.weight", view=conv)
        yield Piece(f"{stored}A_log", (delta.value_heads,), f"{ours}rate_log")
        yield Piece(f"{stored}dt_bias", (delta.value_heads,), f"{ours}step_bias")
        yield Piece(f"{stored}norm.weight", (delta.value_dim,), f"{ours}norm.weight")
        yield Piece(f"{stored}out_proj.weight", (width, delta.values), f"{ours}out.weight")

    def projection_pieces(
        self, width: int, delta: GatedDeltaShape, stored: str, ours: str
    ) -> Iterator[Piece]:
        """The stored rows are grouped by key head; Mixtura's rows are grouped by part.

        For each key head, in_proj_qkvz has the rows of its query and its key, then the rows of the
        values and of the output gates of its value heads. in_proj_ba has the rows of b, then those
        of a, of the same value heads.
        """
        served = delta.value_heads // delta.key_heads
        key, value = delta.key_dim, served * delta.value_dim
        values = 2 * delta.keys
        sides = [
            (0, key, 0),
            (key, key, delta.keys),
            (2 * key, value, values),
            (2 * key + value, value, values + delta.values),
        ]
        gates = [(0, served, 0), (served, served, delta.value_heads)]
        for name, parts, place in (
            ("in_proj_qkvz", sides, "projection"),
            ("in_proj_ba", gates, "gates"),
        ):
            group = sum(rows for _, rows, _ in parts)
            size = (delta.key_heads * group, width)
            for head in range(delta.key_heads):
                for first, rows, start in parts:
                    yield Piece(
                        f"{stored}{name}.weight",
                        size,
                        f"{ours}{place}.weight",
                        at=_rows(start + head * rows, rows),
                        of=_rows(head * group + first, rows),
                    )

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield from gated_shared_pieces(width, moe, stored, ours)


class Qwen35MoeText(Qwen3Next):
    """The text model of Qwen3.5 and 3.6: an MoE in every layer, and a tensor for each projection.

    Its RoPE gives each token three positions. They differ only for images, so for a text this is
    ordinary RoPE.
    """

    model_type = "qwen3_5_moe_text"
    architecture = "Qwen3_5MoeForCausalLM"
    defaults = MappingProxyType(
        {
            **{
                key: value
                for key, value in Qwen3Next.defaults.items()
                if key not in ("intermediate_size", "decoder_sparse_step", "mlp_only_layers")
            },
            "num_experts_per_tok": 8,
            "num_experts": 256,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("norm_topk_prob", True)
        # transformers' class of this family has no dense layers, and so no key for their width.
        width = keys.integer("moe_intermediate_size")
        return {**super().read({**config, "intermediate_size": width}), "ffn_width": None}

    def read_placement(self, keys: Keys) -> Tree:
        return {}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        for key in ("intermediate_size", "norm_topk_prob"):
            del written[key]
        return written

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        return {}

    def projection_pieces(
        self, width: int, delta: GatedDeltaShape, stored: str, ours: str
    ) -> Iterator[Piece]:
        for place, sides in {
            "projection": {"in_proj_qkv": delta.channels, "in_proj_z": delta.values},
            "gates": {"in_proj_b": delta.value_heads, "in_proj_a": delta.value_heads},
        }.items():
            start = 0
            for name, rows in sides.items():
                at = _rows(start, rows)
                weight = f"{ours}{place}.weight"
                yield Piece(f"{stored}{name}.weight", (rows, width), weight, at)
                start += rows


class Qwen35Moe(Qwen35MoeText):
    """A model of text and images, of which only the text part is read.

    The experts' matrices are stacked, but in FP8 each expert has tensors of its own.
    """

    model_type = "qwen3_5_moe"
    left_out = MappingProxyType(
        {**Qwen35MoeText.left_out, r"model\.visual\..*": "reads images and videos"}
    )

    def __init__(self, *, stacked: bool = True) -> None:
        self.stacked = stacked

    def of_config(self, config: Mapping[str, Any]) -> Self:
        return type(self)(stacked=config.get("quantization_config") is None)

    def read(self, config: Mapping[str, Any]) -> Tree:
        outer = Keys(config, self.model_type)
        text = outer.mapping("text_config")
        tied = {"tie_word_embeddings": outer.flag("tie_word_embeddings", False)}
        return super().read({**tied, **text})

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        raise ConfigError(
            "a qwen3_5_moe model without its vision part would not load; save it as "
            "qwen3_5_moe_text"
        )

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        for piece in super().pieces(shape):
            name = piece.stored
            if name.startswith("model."):
                name = f"model.language_{name}"
            yield replace(piece, stored=name)

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        each = f"{stored}experts."
        for piece in super().moe_pieces(width, moe, stored, ours):
            if not self.stacked or not piece.stored.startswith(each):
                yield piece
        if self.stacked:
            w_in = (moe.num_experts, 2 * moe.expert_width, width)
            yield Piece(f"{each}gate_up_proj", w_in, f"{ours}experts.w_in")
            w_out = (moe.num_experts, width, moe.expert_width)
            yield Piece(f"{each}down_proj", w_out, f"{ours}experts.w_out")


def _rows(start: int, count: int) -> tuple[slice]:
    return (slice(start, start + count),)


def _queries_and_gates(queries: Piece, attention: AttentionShape, ours: str) -> Iterator[Piece]:
    """The pieces of queries and output gates, head by head.

    `queries` is the piece that `q_proj` would have if it had no rows of gates.
    """
    dim = attention.head_dim
    rows, *others = queries.shape
    suffix = queries.ours.rpartition(".")[2]
    for head in range(attention.heads):
        for number, name in enumerate((queries.ours, f"{ours}output_gate.{suffix}")):
            of = _rows((2 * head + number) * dim, dim)
            yield Piece(queries.stored, (2 * rows, *others), name, _rows(head * dim, dim), of)
