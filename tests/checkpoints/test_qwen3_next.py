"""Qwen3-Next and the text part of Qwen3.5-MoE against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.conftest import build, compare

from mixtura.checkpoints.loaded_model import load_model

DELTA, ATTENTION = "linear_attention", "full_attention"
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 96,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 12,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
NEXT = {**TINY, "intermediate_size": 20}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {
            "layer_types": [DELTA, ATTENTION, DELTA, DELTA],
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "linear_conv_kernel_dim": 2,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
        },
        {
            "layer_types": [ATTENTION, DELTA, ATTENTION, ATTENTION],
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.5,
            },
        },
        {"layer_types": [ATTENTION] * 4},
    ],
)
def test_qwen3_next_agrees_with_transformers(
    keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity("qwen3_next", **{**NEXT, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"layer_types": [DELTA, DELTA, ATTENTION, DELTA], "linear_conv_kernel_dim": 3},
        {"layer_types": [ATTENTION, DELTA, DELTA, ATTENTION], "tie_word_embeddings": True},
    ],
)
def test_qwen3_5_moe_text_agrees_with_transformers(
    keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    parity("qwen3_5_moe_text", **{**TINY, **keys})


def test_qwen3_next_has_transformers_gradients(tmp_path: Path) -> None:
    theirs = build("qwen3_next", **NEXT)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m").decoder
    tokens_BS = torch.randint(3, 61, (2, 70))
    for model in (theirs, ours):
        model.requires_grad_(True)
    theirs(tokens_BS).logits.logsumexp(-1).sum().backward()
    ours(tokens_BS).logits_BSV.logsumexp(-1).sum().backward()
    mine = dict(ours.named_parameters())
    name = "blocks.{}.recurrence.{}"
    for layer in (0, 1, 2):
        other = theirs.model.layers[layer].linear_attn
        for own, their in {
            "rate_log": other.A_log,
            "step_bias": other.dt_bias,
            "norm.weight": other.norm.weight,
            "out.weight": other.out_proj.weight,
            "conv.weight": other.conv1d.weight,
        }.items():
            found, wanted = mine[name.format(layer, own)].grad, their.grad
            assert found is not None
            bound = 5e-3 * wanted.abs().max().item()
            torch.testing.assert_close(found, wanted.view(found.shape), rtol=0, atol=bound)
    norm = theirs.model.layers[0].input_layernorm.weight.grad
    found = mine["blocks.0.attention_norm.weight"].grad
    bound = 5e-3 * norm.abs().max().item()
    torch.testing.assert_close(found, norm, rtol=0, atol=bound)


@pytest.mark.parametrize("stacked", [True, False])
def test_qwen3_5_moe_is_read_without_its_vision_part(stacked: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = build("qwen3_5_moe_text", **TINY)
    theirs.save_pretrained(tmp_path)
    own = load_file(tmp_path / "model.safetensors")
    # As the published files have them.
    stored = {
        name.replace("model.", "model.language_model.", 1): tensor for name, tensor in own.items()
    }
    if stacked:
        stored = {name: one for name, one in stored.items() if ".experts." not in name}
        for number, layer in enumerate(theirs.model.layers):
            experts = f"model.language_model.layers.{number}.mlp.experts."
            stored[f"{experts}gate_up_proj"] = layer.mlp.experts.gate_up_proj.detach()
            stored[f"{experts}down_proj"] = layer.mlp.experts.down_proj.detach()
    stored["model.visual.patch_embed.proj.weight"] = torch.ones(3)
    stored["mtp.norm.weight"] = torch.ones(3)
    save_file(stored, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config = {"model_type": "qwen3_5_moe", "text_config": text, "vision_config": {"depth": 2}}
    if not stacked:
        # In the files in FP8 each expert has tensors of its own; no tensor is in FP8 here.
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load_model(tmp_path)
    assert loaded.family.model_type == "qwen3_5_moe"
    compare(theirs, loaded.decoder)
