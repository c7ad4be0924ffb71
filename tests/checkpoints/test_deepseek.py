"""DeepSeek-V2 and V3, and the families in their layout, against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints.conftest import build, check_saved, compare, rename

from mixtura.checkpoints.loaded_model import load_model

MLA = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 10,
    "kv_lora_rank": 7,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 6,
    "v_head_dim": 9,
    "vocab_size": 61,
    "intermediate_size": 20,
    "moe_intermediate_size": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# The mscales as DeepSeek-V2 has them, where both are equal.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
# Its complex numbers are views there, which odd strides rule out.
EVEN = {"kv_lora_rank": 8, "qk_nope_head_dim": 4}
V2_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
V3_GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
CASES: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [
        {"q_lora_rank": None, "rope_parameters": YARN},
        {**V2_GROUPS, "routed_scaling_factor": 16.0, "rms_norm_eps": 1e-3},
        {"attention_bias": True, "routed_scaling_factor": 0.5, "first_k_dense_replace": 0},
        {"q_lora_rank": None, "attention_bias": True, "tie_word_embeddings": True},
    ],
    "deepseek_v3": [
        {**V3_GROUPS, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        {**V3_GROUPS, "rope_interleave": False, "rms_norm_eps": 1e-3, "n_shared_experts": 1},
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "q_lora_rank": None},
        {
            **V3_GROUPS,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        },
        # Moonlight's keys: one group, no latent of queries, RoPE of another base.
        {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "rope_theta": 5e4},
    ],
    "sarvam_mla": [
        {"q_lora_rank": None},
        {**V3_GROUPS, "first_k_dense_replace": 2, "rope_interleave": False},
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "q_lora_rank": None},
    ],
    "glm4_moe_lite": [
        {},
        {**V3_GROUPS, "rope_interleave": False, "attention_bias": True, "q_lora_rank": None},
        {"mlp_layer_types": ["sparse", "dense", "sparse"], "norm_topk_prob": False},
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "rms_norm_eps": 1e-3},
    ],
}


@pytest.mark.parametrize(
    ("family", "keys"), [(family, keys) for family, found in CASES.items() for keys in found]
)
def test_agrees_with_transformers(
    family: str, keys: dict[str, Any], parity: Callable[..., Any]
) -> None:
    even = EVEN if family == "deepseek_v2" else {}
    theirs, ours = parity(family, **{**MLA, **even, **keys})
    # MoE layers of three; the bias that chooses was compared with values of its own.
    biases = [b for name, b in theirs.named_buffers() if name.endswith("correction_bias")]
    assert all(bias.abs().min() > 0 for bias in biases)
    assert len(biases) == (0 if family == "deepseek_v2" else len(ours.decoder.config.moe_shapes))
    assert not ours.left_out


# Kimi K2's YaRN has a step in place of the ramp.
KIMI = {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}


@pytest.mark.parametrize("scaling", [{}, {"rope_parameters": KIMI}])
def test_kimi_k2_agrees_with_deepseek_v3_of_transformers(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` brings it")
    theirs = build("deepseek_v3", **{**MLA, "n_group": 1, "topk_group": 1, **scaling})
    theirs.save_pretrained(tmp_path / "kimi", max_shard_size="20KB")
    rename(tmp_path / "kimi", "kimi_k2")
    ours = load_model(tmp_path / "kimi")
    assert ours.family.model_type == "kimi_k2"
    compare(theirs, ours.decoder)
    check_saved(theirs, ours, tmp_path / "saved", "deepseek_v3")
