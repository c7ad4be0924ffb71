"""LFM2 and its MoE against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.conftest import build

from mixtura.checkpoints.loaded_model import load_model

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
TYPES = ["conv", "conv", "full_attention", "conv"]
MOE = {
    **TINY,
    "layer_types": TYPES,
    "moe_intermediate_size": 10,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tie_word_embeddings": False, "conv_L_cache": 4, "num_dense_layers": 1},
        {"use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 1.7},
        {
            "layer_types": ["full_attention", "conv", "conv", "full_attention"],
            "num_dense_layers": 0,
            "num_key_value_heads": 1,
            "num_experts_per_tok": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {"layer_types": ["full_attention"] * 4},
    ],
)
def test_lfm2_moe_agrees_with_transformers(
    keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity("lfm2_moe", **{**MOE, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"layer_types": TYPES},
        {"full_attn_idxs": [0, 3], "block_multiple_of": 8, "conv_L_cache": 2},
        {"layer_types": TYPES, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False},
    ],
)
def test_lfm2_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("lfm2", **{**TINY, **keys})


@pytest.mark.parametrize("model_type", ["lfm2", "lfm2_moe"])
def test_lfm2_with_biases_agrees_where_nothing_is_padded(model_type: str, tmp_path: Path) -> None:
    # With padding theirs differs: a bias passes through its convolution at padded positions.
    keys = TINY if model_type == "lfm2" else MOE
    theirs = build(model_type, **{**keys, "layer_types": TYPES, "conv_bias": True})
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m").decoder
    assert ours.get_parameter("blocks.0.recurrence.conv.bias").abs().min() > 0
    tokens_BS = torch.randint(3, 61, (2, 40))
    with torch.no_grad():
        wanted = theirs(tokens_BS).logits
        found = ours(tokens_BS).logits_BSV
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
