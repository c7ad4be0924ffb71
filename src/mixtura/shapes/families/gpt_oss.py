"""gpt-oss: attention sinks, windows in half of the layers, biases, and a clamped SwiGLU.

E experts, D model width, F expert width.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.llama import windows_by_type, write_window_types
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.moe import MoEShape

# Defaults of absent keys: layers 0, 2, 4, ... have a window, and RoPE is scaled by YaRN.
_TYPES = ("sliding_attention", "full_attention")
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOss(SparseLlama):
    """Every layer has an MoE. Combine weights are a softmax over the logits of the chosen experts.

    The matrices of all experts are stacked and stored transposed: gate and up as (E, D, 2F), down
    as (E, F, D). The gate column and the up column of a hidden unit are neighbours.
    """

    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    default_theta = 150_000.0
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "layer_types": None,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        }
    )
    width_key = "intermediate_size"

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("swiglu_alpha", 1.702)
        keys.expect("swiglu_limit", 7.0)
        tree = super().read(config)
        clamped: Tree = {
            "activation": "swiglu_clamped",
            "router": {"kind": "topk_softmax"},
            "expert_bias": True,
            "gate_bias": True,
        }
        return {
            **tree,
            "ffn_width": None,
            "activation": "swiglu_clamped",
            "moe": {**tree["moe"], **clamped},
        }

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        if not config.get("rope_parameters") and not config.get("rope_scaling"):
            config = {**config, "rope_parameters": _YARN}
        return {**super().read_attention(config), "sinks": True}

    def read_windows(self, keys: Keys) -> Tree | None:
        types = [_TYPES[layer % 2] for layer in range(keys.integer("num_hidden_layers"))]
        stated = {
            "use_sliding_window": True,
            "sliding_window": keys.integer("sliding_window", 0),
            "num_hidden_layers": len(types),
            "layer_types": keys.given("layer_types"),
        }
        return windows_by_type(Keys(stated, self.model_type), types)

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        written = super().write({**decoder, "ffn_width": moe["expert_width"]})
        del written["norm_topk_prob"]
        return {**written, "swiglu_limit": 7.0}

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        written = write_window_types(local, layers)
        # transformers makes an attention mask of this width even if no layer has a window, so the
        # width must be a number.
        window = written["sliding_window"] or self.defaults["sliding_window"]
        return {"sliding_window": window, "layer_types": written["layer_types"]}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        experts, hidden, every = moe.num_experts, moe.expert_width, slice(None)
        yield Piece(f"{stored}router.weight", (experts, width), f"{ours}router.weight")
        yield Piece(f"{stored}router.bias", (experts,), f"{ours}router.gate_bias")
        stored, ours = f"{stored}experts.", f"{ours}experts."
        size = (experts, width, 2 * hidden)
        for rows, columns in _gate_and_up(hidden):
            at, of = (every, rows), (every, every, columns)
            yield Piece(f"{stored}gate_up_proj", size, f"{ours}w_in", at, of, transposed=True)
        size = (experts, hidden, width)
        yield Piece(f"{stored}down_proj", size, f"{ours}w_out", transposed=True)
        size = (experts, 2 * hidden)
        for part in _gate_and_up(hidden):
            at, of = ((every, own) for own in part)
            yield Piece(f"{stored}gate_up_proj_bias", size, f"{ours}b_in", at, of)
        yield Piece(f"{stored}down_proj_bias", (experts, width), f"{ours}b_out")


def _gate_and_up(hidden: int) -> Iterator[tuple[slice, slice]]:
    """(Mixtura's rows, stored columns) of gate, then of up; the stored columns alternate."""
    yield slice(0, hidden), slice(0, None, 2)
    yield slice(hidden, 2 * hidden), slice(1, None, 2)
