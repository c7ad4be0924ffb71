"""Granite 4, with Mamba-2 layers, against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.conftest import build

from mixtura.checkpoints.loaded_model import load_model

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 10,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 14,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "mamba_n_heads": 6,
    "mamba_d_state": 7,
    "mamba_chunk_size": 8,
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
}
SCALED = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}


@pytest.mark.parametrize(
    "keys",
    [
        {**SCALED, "tie_word_embeddings": True, "position_embedding_type": "nope"},
        {"mamba_n_groups": 3, "mamba_d_conv": 3, "mamba_conv_bias": False, "mamba_expand": 3},
        {"position_embedding_type": "rope", "attention_bias": True, "num_experts_per_tok": 3},
        {**SCALED, "num_local_experts": 0, "mamba_n_groups": 2},
        {
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "layer_types": ["attention"] * 4,
            "tie_word_embeddings": True,
        },
    ],
)
def test_granite_hybrid_agrees_with_transformers(
    keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity("granitemoehybrid", **{**TINY, **keys})


def test_granite_hybrid_with_bounds_of_steps_agrees_in_whole_texts(
    parity: Callable[..., Any],
) -> None:
    # Token by token transformers has no bounds.
    theirs, ours = parity("granitemoehybrid", greedy=False, **TINY, time_step_limit=(0.9, 1.3))
    assert ours.decoder.config.recurrence.most_step == 1.3
    assert theirs.config.time_step_limit == (0.9, 1.3)


def test_granite_hybrid_with_biases_agrees_where_nothing_is_padded(tmp_path: Path) -> None:
    # With padding theirs differs: a bias passes through its convolution at padded positions.
    theirs = build("granitemoehybrid", **TINY, mamba_proj_bias=True)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m").decoder
    assert ours.get_parameter("blocks.0.recurrence.steps.bias").abs().min() > 0
    tokens_BS = torch.randint(3, 61, (2, 40))
    with torch.no_grad():
        wanted = theirs(tokens_BS).logits
        found = ours(tokens_BS).logits_BSV
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
