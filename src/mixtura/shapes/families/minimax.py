"""MiniMax M2: Mixtral's layout, a sigmoid router with a choosing bias, partly rotated heads."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.families.partial_rotary import PartlyRotated
from mixtura.shapes.moe import MoEShape


class MiniMaxM2(SparseLlama, PartlyRotated):
    """Queries and keys are normed over all heads at once; RoPE rotates `rotary_dim` dims a head."""

    model_type = "minimax_m2"
    architecture = "MiniMaxM2ForCausalLM"
    in_fp32 = frozenset({"scores", "weights"})
    default_theta = 5e6
    moe_name = "block_sparse_moe"
    expert_names = ("w1", "w3", "w2")
    width_key = "intermediate_size"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 8,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        # transformers ignores these keys and computes as these values state.
        keys.expect("scoring_func", "sigmoid")
        keys.expect("use_routing_bias", True)
        keys.expect("use_qk_norm", True)
        keys.expect("qk_norm_type", "per_layer")
        keys.expect("shared_intermediate_size", 0, None)
        tree = super().read(config)
        tree["moe"] |= {"router": {"kind": "sigmoid_topk", "choosing_bias": True}}
        return {**tree, "ffn_width": None}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        tree = super().read_attention(config)
        # transformers' class of this family has no key for biases of attention.
        return {**tree, "input_bias": False, "output_bias": False, "norm": "all"}

    def share_of(self, keys: Keys, head_dim: int) -> float:
        return keys.integer("rotary_dim", head_dim) / head_dim

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write({**decoder, "ffn_width": decoder["moe"]["expert_width"]})
        del written["norm_topk_prob"]
        return written

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        written = super().write_attention(attention)
        del written["attention_bias"]
        return {**written, "rotary_dim": attention["rotated_dim"] or attention["head_dim"]}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield Piece(f"{stored}e_score_correction_bias", (moe.num_experts,), f"{ours}router.bias")
