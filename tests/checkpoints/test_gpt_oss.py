"""gpt-oss against transformers: sinks, windows, biases, YaRN, and MXFP4 unpacked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixtura.checkpoints.loaded_model import load_model

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 61,
    "intermediate_size": 14,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 8,
}
CASES: list[dict[str, Any]] = [
    {},
    {"rope_parameters": YARN, "num_key_value_heads": 4, "num_experts_per_tok": 4},
    {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "num_key_value_heads": 1,
        "sliding_window": 7,
    },
    {"layer_types": ["full_attention"] * 3, "attention_bias": False, "tie_word_embeddings": True},
]


@pytest.mark.parametrize("keys", CASES)
def test_agrees_with_transformers(keys: dict[str, Any], parity: Callable[..., Any]) -> None:
    parity("gpt_oss", **{**TINY, **keys})


def test_a_folder_of_mxfp4_weights(parity: Callable[..., Any], tmp_path: Path) -> None:
    # Widths of whole groups of 32, and not equal: nothing fits the wrong way round.
    wide = {"hidden_size": 64, "intermediate_size": 32}
    theirs, plain = parity("gpt_oss", greedy=False, **{**TINY, **wide})
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tmp_path / "packed"
    theirs.bfloat16().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        # 2^-5 .. 2^-2, so that values stay below 1.5.
        scales = torch.randint(122, 126, blocks.shape[:-1], dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        theirs.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))

    ours = load_model(folder)
    assert {tensor.dtype for tensor in ours.decoder.parameters()} == {torch.bfloat16}
    decoder, theirs = ours.decoder.float(), theirs.float()
    tokens_BS = torch.randint(3, 61, (2, 11))
    with torch.no_grad():
        wanted, found = theirs(tokens_BS).logits, decoder(tokens_BS).logits_BSV
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    assert decoder.config == plain.decoder.config
