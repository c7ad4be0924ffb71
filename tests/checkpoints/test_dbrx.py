"""DBRX against transformers."""

from collections.abc import Callable
from typing import Any

import pytest

FFN = {"ffn_hidden_size": 14, "moe_num_experts": 5, "moe_top_k": 3, "moe_jitter_eps": 0}
ATTENTION = {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 500.0}
TINY = {
    "d_model": 24,
    "n_heads": 4,
    "n_layers": 3,
    "max_seq_len": 64,
    "vocab_size": 61,
    "attn_config": ATTENTION,
    "ffn_config": FFN,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CASES: list[dict[str, Any]] = [
    {},
    {"attn_config": {**ATTENTION, "clip_qkv": 90, "kv_n_heads": 4}},
    {"ffn_config": {**FFN, "moe_normalize_expert_weights": 2.0}},
    {
        "attn_config": {**ATTENTION, "kv_n_heads": 1},
        "ffn_config": {**FFN, "moe_normalize_expert_weights": None, "moe_top_k": 1},
    },
]


@pytest.mark.parametrize("keys", CASES)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("dbrx", **{**TINY, **keys})
