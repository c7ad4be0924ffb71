"""Gemma 3 against transformers: both bases, both ways to name them, windows, scaling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.checkpoints.loaded_model import load_model

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 61,
    "intermediate_size": 14,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 7,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
BOTH = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
}
CASES: list[dict[str, Any]] = [
    {},
    {"rope_parameters": BOTH, "num_key_value_heads": 4},
    {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": BOTH,
        "attention_bias": True,
    },
    {"layer_types": ["full_attention"] * 3, "num_key_value_heads": 1},
    {"tie_word_embeddings": False, "sliding_window": 9},
]


@pytest.mark.parametrize("keys", CASES)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("gemma3_text", **{**TINY, **keys})


VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def test_the_text_of_a_model_with_images(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=TINY, vision_config=VISION, mm_tokens_per_image=4
    )
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens_BS = torch.randint(3, 61, (2, 11))
    with torch.no_grad():
        wanted, found = theirs(tokens_BS).logits, ours.decoder(tokens_BS).logits_BSV
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    assert {name.partition(".")[0] for name in ours.left_out} == {
        "vision_tower",
        "multi_modal_projector",
    }
