"""ERNIE 4.5's MoE against transformers."""

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
    "moe_intermediate_size": 10,
    "moe_num_experts": 5,
    "moe_k": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tie_word_embeddings": False, "moe_num_shared_experts": 1, "num_key_value_heads": 1},
        {"moe_layer_end_index": 2, "moe_k": 3, "head_dim": 10, "moe_num_shared_experts": 0},
        {"moe_layer_start_index": 0, "moe_layer_interval": 2, "num_key_value_heads": 4},
    ],
)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("ernie4_5_moe", **{**TINY, **keys})
