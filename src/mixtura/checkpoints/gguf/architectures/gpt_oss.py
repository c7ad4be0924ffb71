"""gpt-oss: attention sinks, biases, and a sliding window in layers 0, 2, 4, ...

HF (Hugging Face) stores the experts' gate and up as one tensor (E, D, 2F), and down as (E, F, D).
GGUF stores gate and up as two tensors (E, F, D), and down as (E, D, F). E experts, D width, F
expert width, P pairs of dims that RoPE rotates in a head.
"""

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import NAMES, Architecture
from mixtura.checkpoints.gguf.architectures.llama import expert_counts, expert_width
from mixtura.checkpoints.gguf.links import EVERY, Named, same
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import Piece

_WINDOW = ".attention.sliding_window"
_TYPES = ("sliding_attention", "full_attention")


class GptOss(Architecture):
    """Every layer is an MoE, whose router takes the k largest logits, then a softmax over them.

    Most files store the experts as MXFP4.
    """

    name = "gpt-oss"
    needs_head = True
    names = MappingProxyType(
        {
            **NAMES,
            "post_attention_layernorm": "post_attention_norm",
            "mlp.router": "ffn_gate_inp",
        }
    )

    def model_type(self, metadata: Metadata) -> str:
        return "gpt_oss"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        config = super().config(metadata, names, factors_P)
        return {
            **config,
            **expert_counts(metadata, "num_local_experts"),
            "intermediate_size": expert_width(metadata, config["intermediate_size"]),
            "attention_bias": True,
            "sliding_window": metadata.count(_WINDOW),
            "layer_types": [_TYPES[layer % 2] for layer in range(config["num_hidden_layers"])],
            "swiglu_limit": 7.0,
        }

    def rope(
        self, metadata: Metadata, rope_dim: int, factors_P: NDArray[np.float32] | None
    ) -> Tree:
        rope = super().rope(metadata, rope_dim, factors_P)
        # GGUF has no key for `truncate`, which is false in the published models.
        return {**rope, "truncate": False} if rope["rope_type"] == "yarn" else rope

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        local = decoder["attention"]["local"]
        return {**super().keys(decoder), _WINDOW: local["window"] if local else 0}

    def in_block(
        self, one: Named, block: str, rest: str, shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        match rest:
            case "self_attn.sinks":
                yield from same(one, f"{block}attn_sinks.weight")
            case "mlp.experts.gate_up_proj":
                experts, width, both = one.shape
                size = (experts, both // 2, width)
                for name, columns in _gate_and_up():
                    stack = f"{block}ffn_{name}_exps.weight"
                    at = (EVERY, EVERY, columns)
                    yield Piece(stack, size, one.name, at=at, transposed=True)
            case "mlp.experts.gate_up_proj_bias":
                experts, both = one.shape
                for name, columns in _gate_and_up():
                    stack = f"{block}ffn_{name}_exps.bias"
                    yield Piece(stack, (experts, both // 2), one.name, at=(EVERY, columns))
            case "mlp.experts.down_proj":
                experts, hidden, width = one.shape
                stack, size = f"{block}ffn_down_exps.weight", (experts, width, hidden)
                yield Piece(stack, size, one.name, transposed=True)
            case "mlp.experts.down_proj_bias":
                yield from same(one, f"{block}ffn_down_exps.bias")
            case _:
                yield from super().in_block(one, block, rest, shape, present)


def _gate_and_up() -> Iterator[tuple[str, slice]]:
    """Yield gate's and up's columns in HF's tensor: 0, 2, 4, ... and 1, 3, 5, ..."""
    yield "gate", slice(0, None, 2)
    yield "up", slice(1, None, 2)
