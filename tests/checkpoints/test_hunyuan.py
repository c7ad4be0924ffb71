"""Hunyuan-A13B against transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.checkpoints.conftest import GREEDY, TOKENS, greedy_tokens

ALPHA = {"alpha": 1000.0, "factor": 1.0}
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 10,
    "num_experts": 5,
    "moe_topk": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "keys",
    [
        {"head_dim": 8, "tie_word_embeddings": True},
        {
            "head_dim": 6,
            "moe_topk": [3, 3, 3],
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, **ALPHA},
        },
        {"head_dim": 8, "num_key_value_heads": 4},
    ],
)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    # transformers' generate() counts positions without the padding before a text, and its forward
    # pass counts padding too. Under a norm after rotation that changes outputs.
    theirs, ours = parity("hunyuan_v1_moe", greedy=False, **{**TINY, **keys})
    tokens_BS = torch.randint(3, TINY["vocab_size"], (3, TOKENS))
    with torch.no_grad():
        said_BS = theirs.generate(tokens_BS, max_new_tokens=GREEDY, do_sample=False)
    found_BS = greedy_tokens(ours.decoder, tokens_BS, torch.ones_like(tokens_BS).bool())
    assert torch.equal(found_BS, said_BS[:, TOKENS:])
