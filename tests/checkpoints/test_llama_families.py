"""Llama's layout, dense and sparse, against transformers."""

from collections.abc import Callable
from typing import Any

import pytest

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [1.0, 3.0, 6.0],
}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 10}
SHARED = {**QWEN_MOE, "shared_expert_intermediate_size": 14}
CASES: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"num_key_value_heads": 4, "head_dim": 10, "attention_bias": True},
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        {"rope_parameters": YARN},
        {"rope_parameters": {**YARN, "attention_factor": 0.7, "beta_fast": 4, "truncate": False}},
        # Within the original context all along, and beyond it from the first token on.
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 48}},
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 5, "factor": 3.0}},
    ],
    "mistral": [{"sliding_window": 5}, {"sliding_window": None, "head_dim": 8}],
    "qwen2": [{}, {**WINDOW, "max_window_layers": 1}, {"tie_word_embeddings": True}],
    "qwen3": [{"head_dim": 8}, {"head_dim": 6, **WINDOW, "max_window_layers": 2}],
    "mixtral": [
        {"num_local_experts": 5},
        {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 6, "head_dim": 8},
        {"num_local_experts": 12, "tie_word_embeddings": True, "intermediate_size": 7},
    ],
    "olmoe": [
        {"num_experts": 6, "num_experts_per_tok": 3},
        {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "clip_qkv": 0.5},
        {"num_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 4},
    ],
    "qwen2_moe": [
        SHARED,
        {**SHARED, "norm_topk_prob": True, "decoder_sparse_step": 2, "qkv_bias": False},
        {**SHARED, "mlp_only_layers": [1], **WINDOW, "max_window_layers": 1},
    ],
    "qwen3_moe": [
        {**QWEN_MOE, "head_dim": 8},
        {**QWEN_MOE, "head_dim": 6, "norm_topk_prob": True, "mlp_only_layers": [0]},
        {**QWEN_MOE, "head_dim": 6, "attention_bias": True, **WINDOW},
        # One weight over itself is 1, which can be run and not be trained.
        {**QWEN_MOE, "head_dim": 8, "num_experts_per_tok": 1, "norm_topk_prob": True},
    ],
}


@pytest.mark.parametrize(
    ("family", "keys"), [(family, keys) for family, found in CASES.items() for keys in found]
)
def test_agrees_with_transformers(
    family: str, keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity(family, **{**TINY, **keys})
