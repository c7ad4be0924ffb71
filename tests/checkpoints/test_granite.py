"""Granite's MoE against transformers."""

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
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SCALED = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {**SCALED, "tie_word_embeddings": True},
        {**SCALED, "attention_bias": True, "num_experts_per_tok": 4, "num_key_value_heads": 1},
        {"head_dim": 10, "intermediate_size": 7, "rope_parameters": LINEAR},
    ],
)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("granitemoe", **{**TINY, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {**SCALED, "shared_intermediate_size": 9, "tie_word_embeddings": True},
        {"shared_intermediate_size": 0},
    ],
)
def test_a_shared_expert(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("granitemoeshared", **{**TINY, **keys})
