"""Flint: Qwen3-MoE with sinks and windows, a sigmoid router and a shared expert without a gate."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.llama import SLIDING
from mixtura.shapes.families.mixtral import SparseLlama, read_sparse_step, write_sparse_step
from mixtura.shapes.families.windows import WindowsByType
from mixtura.shapes.moe import MoEShape


class Flint(SparseLlama, WindowsByType):
    """RoPE rotates only the layers with a window; by default the first two layers are dense."""

    model_type = "flint"
    architecture = "FlintForCausalLM"
    in_fp32 = frozenset({"gates"})
    rotates_full_layers = False
    count_key = "num_experts"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts_per_tok": 6,
            "norm_topk_prob": True,
            "sliding_window": 513,
            "layer_types": None,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read(config)
        kind = {"kind": "sigmoid_topk", "choosing_bias": False}
        router = {**kind, "renormalise": keys.flag("norm_topk_prob")}
        shared = keys.integer("shared_expert_intermediate_size")
        tree["moe"] |= {"router": router, "shared_width": shared}
        return tree

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return {**super().read_attention(config), "norm": "head", "sinks": True}

    def default_types(self, keys: Keys) -> list[str]:
        """The first two layers, the second of every four, and the last layer have no window."""
        layers = keys.integer("num_hidden_layers")
        full = {0, 1, layers - 1, *range(1, layers, 4)}
        return ["full_attention" if layer in full else SLIDING for layer in range(layers)]

    def read_placement(self, keys: Keys) -> Tree:
        dense = keys.integers("mlp_only_layers", [0, 1])
        return read_sparse_step(keys.with_value("mlp_only_layers", value=dense))

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        shared = decoder["moe"]["shared_width"]
        return {
            **super().write(decoder),
            **write_sparse_step(decoder),
            "shared_expert_intermediate_size": shared,
        }

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        for piece in super().attention_pieces(shape, stored, ours):
            name = piece.stored.replace(".sinks", ".softmax_offset")
            yield replace(piece, stored=name)

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield from ffn_pieces(width, moe.shared_width, f"{stored}shared_expert.", f"{ours}shared.")
