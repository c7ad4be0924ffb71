"""ERNIE 4.5's MoE: a choosing bias, shared experts, and experts in every n-th layer.

HF (Hugging Face) and GGUF both store the two rows of a RoPE pair as neighbours. P pairs of
dims that RoPE rotates in a head.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import Architecture
from mixtura.checkpoints.gguf.architectures.llama import expert_counts, expert_width
from mixtura.checkpoints.gguf.links import Named, row_alone
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import Piece

_FIRST, _STEP = ".leading_dense_block_count", ".interleave_moe_layer_step"


class Ernie45Moe(Architecture):
    """The first layers are dense. Of the layers after them every n-th is an MoE.

    The combine weights of a token's experts are renormalised.
    """

    name = "ernie4_5-moe"
    dense_layers = True

    def model_type(self, metadata: Metadata) -> str:
        return "ernie4_5_moe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        counts = expert_counts(metadata, "moe_num_experts")
        return {
            **config,
            "moe_num_experts": counts["moe_num_experts"],
            "moe_k": counts["num_experts_per_tok"],
            "moe_intermediate_size": expert_width(metadata, config["intermediate_size"]),
            "moe_num_shared_experts": int(metadata.number(".expert_shared_count", 0)),
            "moe_layer_start_index": int(metadata.number(_FIRST, 0)),
            "moe_layer_interval": metadata.count(_STEP, 1),
            "moe_layer_end_index": -1,
            "use_bias": False,
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        placement = moe["placement"]
        return {
            **super().keys(decoder),
            ".expert_shared_count": moe["shared_width"] // moe["expert_width"],
            ".expert_shared_feed_forward_length": moe["shared_width"],
            _FIRST: placement["first_dense"],
            _STEP: placement["every"],
        }

    def in_block(
        self, one: Named, block: str, rest: str, shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        if rest == "mlp.moe_statics.e_score_correction_bias":
            yield from row_alone(one, f"{block}exp_probs_b.bias")
        else:
            yield from super().in_block(one, block, rest, shape, present)
