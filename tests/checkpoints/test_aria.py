"""Aria's text model against transformers."""

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
    "moe_num_experts": 5,
    "moe_topk": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"head_dim": 8, "moe_num_shared_experts": 1, "moe_topk": 3, "attention_bias": True},
        {"num_key_value_heads": 4, "moe_num_experts": 7, "tie_word_embeddings": True},
    ],
)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("aria_text", **{**TINY, **keys})
