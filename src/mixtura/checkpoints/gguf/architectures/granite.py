"""Granite's MoE: constant multipliers; HF stores an expert's gate and up in one tensor.

HF stands for Hugging Face. P pairs of dims that RoPE rotates in a head.
"""

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import NAMES, Architecture
from mixtura.checkpoints.gguf.architectures.llama import expert_counts
from mixtura.checkpoints.gguf.links import Named, gate_and_up
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import Piece

_SHARED = ".expert_shared_feed_forward_length"
_TOGETHER = {"block_sparse_moe": "exps", "shared_mlp": "shexp"}


class GraniteMoe(Architecture):
    """Every layer is an MoE. The combine weights of a token's experts are renormalised."""

    name = "granitemoe"
    interleaved = True
    experts_in_ffn = True
    names = MappingProxyType(
        {
            **NAMES,
            "block_sparse_moe.router.layer": "ffn_gate_inp",
            "block_sparse_moe.output_linear": "ffn_down_exps",
            "shared_mlp.output_linear": "ffn_down_shexp",
        }
    )

    def model_type(self, metadata: Metadata) -> str:
        return "granitemoeshared" if self._shared_width(metadata) else "granitemoe"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        scale = config["head_dim"] ** -0.5
        config |= {
            **expert_counts(metadata, "num_local_experts"),
            "attention_bias": "blk.0.attn_q.bias" in names,
            # If a multiplier is absent or 0, its default applies: head_dim ** -0.5 for attention,
            # and 1 for the embedding and the residual.
            "embedding_multiplier": metadata.number(".embedding_scale", 1.0) or 1.0,
            "residual_multiplier": metadata.number(".residual_scale", 1.0) or 1.0,
            "attention_multiplier": metadata.number(".attention.scale", scale) or scale,
            "logits_scaling": metadata.number(".logit_scale"),
        }
        if shared := self._shared_width(metadata):
            config["shared_intermediate_size"] = shared
        return config

    def _shared_width(self, metadata: Metadata) -> int:
        return metadata.count(_SHARED) if metadata.number(_SHARED, 0) else 0

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        multipliers, attention = decoder["multipliers"], decoder["attention"]
        found: Tree = {
            **super().keys(decoder),
            ".embedding_scale": multipliers["embedding"],
            ".residual_scale": multipliers["residual"],
            ".logit_scale": 1 / multipliers["logits"],
            ".attention.scale": attention["scale"] or attention["head_dim"] ** -0.5,
        }
        if shared := decoder["moe"]["shared_width"]:
            found[_SHARED] = shared
        return found

    def in_block(
        self, one: Named, block: str, rest: str, shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        stem, _, last = rest.partition(".")
        if last == "input_linear.weight" and stem in _TOGETHER:
            kind = _TOGETHER[stem]
            yield from gate_and_up(
                one, f"{block}ffn_gate_{kind}.weight", f"{block}ffn_up_{kind}.weight"
            )
        else:
            yield from super().in_block(one, block, rest, shape, present)
