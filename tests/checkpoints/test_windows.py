"""Families whose full layers are not rotated, and one without norms before attention and FFN."""

from collections.abc import Callable
from typing import Any

import pytest

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 20,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SIZES = {"moe_intermediate_size": 6, "sliding_window": 5}
FLINT = {**SIZES, "shared_expert_intermediate_size": 14}
GRANITE = {"num_local_experts": 5, "sliding_window": 5, "shared_intermediate_size": 8}
KINDS = ["full_attention", "sliding_attention"]
THETA = {"rope_theta": 300.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, list[dict[str, Any]]] = {
    "exaone_moe": [
        SIZES,
        {**SIZES, "layer_types": KINDS * 2, "n_group": 4, "topk_group": 2, "head_dim": 8},
        {
            **SIZES,
            "layer_types": KINDS[:1] * 4,
            "mlp_layer_types": ["sparse", "dense"] * 2,
            "num_shared_experts": 2,
        },
    ],
    "flint": [
        {**FLINT, "head_dim": 8},
        {**FLINT, "head_dim": 6, "layer_types": KINDS * 2, "mlp_only_layers": []},
        {**FLINT, "head_dim": 8, "norm_topk_prob": False, "attention_bias": True},
    ],
    "granitemoe_swa": [
        {**GRANITE, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
        {**GRANITE, "layer_types": KINDS * 2, "layer_rope_theta": [0, 100.0, 500.0, 0]},
        {**GRANITE, "shared_intermediate_size": 0, "layer_rope_theta": [0, 90.0, 90.0, 90.0]},
    ],
    "afmoe": [
        {**SIZES, "head_dim": 8},
        {**SIZES, "head_dim": 6, "layer_types": KINDS * 2, "mup_enabled": True},
        {
            **SIZES,
            "head_dim": 8,
            "num_dense_layers": 2,
            "num_shared_experts": 1,
            "route_scale": 2.0,
        },
    ],
    "mellum": [
        {**SIZES, "head_dim": 8, "num_experts": 5},
        {**SIZES, "head_dim": 6, "layer_types": KINDS * 2, "norm_topk_prob": False},
        {
            **SIZES,
            "head_dim": 8,
            "layer_types": KINDS * 2,
            "mlp_layer_types": ["sparse", "dense"] * 2,
            "rope_parameters": {KINDS[0]: YARN, KINDS[1]: {"rope_type": "default", **THETA}},
        },
    ],
    "flex_olmo": [
        {},
        {"norm_topk_prob": True, "num_key_value_heads": 4, "rope_parameters": YARN},
        {"tie_word_embeddings": True, "attention_bias": True, "num_experts_per_tok": 1},
    ],
}


@pytest.mark.parametrize(
    ("family", "keys"), [(family, keys) for family, found in CASES.items() for keys in found]
)
def test_agrees_with_transformers(
    family: str, keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity(family, **{**TINY, **keys})
