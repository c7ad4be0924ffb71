"""Phi-3.5-MoE against transformers."""

from collections.abc import Callable
from typing import Any

import pytest

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 10,
    "num_local_experts": 5,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# Three pairs a head. transformers 5.23 turns by the short factors at every length.
SHORT = [1.0, 1.1, 1.3]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": [1.0, 2.5, 4.0],
    "short_mscale": 1.2,
    "long_mscale": 1.5,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.3},
        {"sliding_window": 5, "num_key_value_heads": 4, "router_jitter_noise": 0.45},
        {"tie_word_embeddings": True, "num_local_experts": 2, "router_jitter_noise": 0.1},
        {"rope_parameters": LONG, "attention_bias": True},
    ],
)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("phimoe", **{**TINY, **keys})


def test_a_text_that_grows_past_the_original_context(parity: Callable[..., Any]) -> None:
    # 11 tokens are read and 32 written: at the 21st all keys turn by the other amplitude.
    rope = {**LONG, "long_factor": SHORT, "original_max_position_embeddings": 20}
    parity("phimoe", **TINY, rope_parameters=rope)
