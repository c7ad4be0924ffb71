"""DBRX: LayerNorm, one tensor for queries, keys and values, and config keys unlike Llama's.

HF stands for Hugging Face. E experts, D width, F expert width, P pairs of dims that RoPE
rotates in a head.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import (
    EMBEDDING,
    Architecture,
    head_dim_of,
    tokens_of,
    vocabulary_of,
)
from mixtura.checkpoints.gguf.architectures.llama import check_head_width, expert_counts
from mixtura.checkpoints.gguf.links import Named, same
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import FAMILIES, Piece

_CLAMP, _EPSILON = ".attention.clamp_kqv", ".attention.layer_norm_epsilon"
_HF_EPSILON = 1e-5
_OUTER = {"transformer.wte.weight": EMBEDDING, "transformer.norm_f.weight": "output_norm.weight"}
_EXPERTS = {
    "ffn.experts.mlp.w1": "ffn_gate_exps",
    "ffn.experts.mlp.v1": "ffn_up_exps",
    "ffn.experts.mlp.w2": "ffn_down_exps",
}


class Dbrx(Architecture):
    """Every layer is an MoE. The combine weights of a token's experts are renormalised."""

    name = "dbrx"
    experts_in_ffn = True
    names = MappingProxyType(
        {
            "norm_attn_norm.norm_1": "attn_norm",
            "norm_attn_norm.attn.Wqkv": "attn_qkv",
            "norm_attn_norm.attn.out_proj": "attn_output",
            "norm_attn_norm.norm_2": "attn_output_norm",
            "ffn.router.layer": "ffn_gate_inp",
        }
    )

    def model_type(self, metadata: Metadata) -> str:
        return "dbrx"

    def config(
        self,
        metadata: Metadata,
        names: Container[str],
        factors_P: NDArray[np.float32] | None,
    ) -> Tree:
        width, heads = metadata.count(".embedding_length"), metadata.count(".attention.head_count")
        rope = self.rope(metadata, head_dim_of(metadata, width, heads), factors_P)
        vocabulary, clamp = vocabulary_of(metadata), metadata.number(_CLAMP)
        if (epsilon := metadata.number(_EPSILON)) != _HF_EPSILON:
            raise metadata.error(_EPSILON, f"{epsilon:g}, expected {_HF_EPSILON:g}")
        counts = expert_counts(metadata, "moe_num_experts")
        return {
            "architectures": [FAMILIES["dbrx"].architecture],
            "model_type": "dbrx",
            "d_model": width,
            "vocab_size": vocabulary,
            "max_seq_len": metadata.count(".context_length"),
            "n_layers": metadata.count(".block_count"),
            "n_heads": heads,
            "tie_word_embeddings": False,
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
            "attn_config": {
                # In llama.cpp a bound of 0 means that nothing is clamped.
                "clip_qkv": clamp or None,
                "kv_n_heads": metadata.count(".attention.head_count_kv", heads),
                "rope_theta": rope["rope_theta"],
            },
            "ffn_config": {
                "ffn_hidden_size": metadata.count(".feed_forward_length"),
                "moe_num_experts": counts["moe_num_experts"],
                "moe_top_k": counts["num_experts_per_tok"],
                "moe_normalize_expert_weights": 1.0,
                "moe_jitter_eps": 0.0,
            },
            **tokens_of(metadata, vocabulary),
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        found = super().keys(decoder)
        del found[".attention.layer_norm_rms_epsilon"]
        clamp = decoder["attention"]["clip"] or 0.0
        return {**found, _EPSILON: decoder["norm"]["epsilon"], _CLAMP: clamp}

    def check(self, shape: DecoderShape) -> None:
        super().check(shape)
        check_head_width(shape, self.name)

    def link(self, one: Named, shape: DecoderShape, present: Container[str]) -> Iterator[Piece]:
        if one.name in _OUTER:
            yield from same(one, _OUTER[one.name])
        else:
            yield from super().link(one, shape, present)

    def in_block(
        self, one: Named, block: str, rest: str, shape: DecoderShape, present: Container[str]
    ) -> Iterator[Piece]:
        """For gate, up and down, HF has one matrix of all experts each, and GGUF a stack.

        HF's matrix is (E F, D). GGUF's stack is (E, F, D) for gate and up. For the down projection,
        w2, it is (E, D, F).
        """
        if rest not in _EXPERTS:
            yield from super().in_block(one, block, rest, shape, present)
            return
        assert shape.moe is not None, "every layer has one"
        experts, hidden = shape.moe.num_experts, shape.moe.expert_width
        each = (experts, hidden, shape.width)
        whole = Piece(f"{block}{_EXPERTS[rest]}.weight", each, one.name, view=each)
        if rest.endswith("w2"):
            transposed = (experts, shape.width, hidden)
            whole = replace(whole, shape=transposed, transposed=True)
        yield whole
