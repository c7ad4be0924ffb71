"""Families with DeepSeek-V3's router under grouped-query attention, against transformers."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 20,
    "moe_intermediate_size": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
MANY = {"num_experts": 5, "num_shared_experts": 2}
MINIMAX = {"num_local_experts": 5, "num_experts_per_tok": 2}
CASES: dict[str, list[dict[str, Any]]] = {
    "glm4_moe": [
        # Of 8 dims 4 are rotated, by default; of 10, 6.
        {"head_dim": 8, "use_qk_norm": True, "attention_bias": True},
        {"head_dim": 10, "partial_rotary_factor": 0.6, **GROUPS, "first_k_dense_replace": 0},
        {"head_dim": 8, "rope_parameters": YARN, "norm_topk_prob": False, "n_shared_experts": 1},
        {"head_dim": 6, "partial_rotary_factor": 1.0, "tie_word_embeddings": True},
    ],
    "solar_open": [
        {"head_dim": 8},
        {"head_dim": 8, **GROUPS, "attention_bias": True, "rope_parameters": YARN},
        {"head_dim": 10, "n_shared_experts": 1, "norm_topk_prob": False},
    ],
    "dots1": [
        {"first_k_dense_replace": 1, "norm_topk_prob": True},
        {**GROUPS, "attention_bias": True, "sliding_window": 5, "max_window_layers": 1},
        {"sliding_window": None, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ],
    "minimax_m2": [
        {**MINIMAX, "head_dim": 8, "rotary_dim": 4},
        {**MINIMAX, "head_dim": 6, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {**MINIMAX, "head_dim": 10, "partial_rotary_factor": 0.4, "rope_parameters": YARN},
    ],
    "sarvam_moe": [
        {"head_dim": 8, "first_k_dense_replace": 0},
        {"head_dim": 6, **GROUPS, "attention_bias": True, "use_qk_norm": False},
        {"head_dim": 10, "partial_rotary_factor": 0.4, "num_key_value_heads": 4},
    ],
    "hy_v3": [
        {**MANY, "head_dim": 8},
        {**MANY, "head_dim": 6, "mlp_layer_types": ["sparse", "dense", "sparse"]},
        {**MANY, "head_dim": 10, "router_scaling_factor": 1.5, "attention_bias": True},
    ],
}


@pytest.mark.parametrize(
    ("family", "keys"), [(family, keys) for family, found in CASES.items() for keys in found]
)
def test_agrees_with_transformers(
    family: str, keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    # transformers writes into the RoPE parameters that it is given.
    theirs, ours = parity(family, **{**TINY, **deepcopy(keys)})
    # The bias that chooses was compared with values of its own.
    biases = [b for name, b in theirs.named_buffers() if name.endswith("correction_bias")]
    assert all(bias.abs().min() > 0 for bias in biases)
    assert len(biases) == len(ours.decoder.config.moe_shapes)
    assert not ours.left_out
