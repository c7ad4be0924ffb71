"""What no config.json can ask for, refused by key before anything is gone through."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape
from mixtura.shapes.bounds import LAYERS
from mixtura.shapes.families import family_of, shape_of

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
MOE = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {
    **MOE,
    "num_experts": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
DEEPSEEK = {
    **QWEN,
    "n_routed_experts": 4,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (LLAMA, {"num_attention_heads": 0}, r"num_attention_heads=0 must lie in 1\.\.65536"),
        (LLAMA, {"num_hidden_layers": 10**9}, r"num_hidden_layers=1e\+09 must lie in 1\.\.4096"),
        (LLAMA, {"num_hidden_layers": 10**90}, r"num_hidden_layers=1e\+90 must lie in"),
        (LLAMA, {"rms_norm_eps": 1e-300}, "rms_norm_eps=1e-300 is out of bounds"),
        (LLAMA, {"rope_theta": [1]}, r"rope_theta=\[1\] should be a number"),
        (LLAMA, {"rope_parameters": 5}, "rope_parameters=5 should be a mapping"),
        (LLAMA, {"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type=\['yarn'\]"),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
            "original_max_position_embeddings=0 must lie in 1",
        ),
        (MOE, {"model_type": "mixtral", "num_local_experts": 10**12}, r"must lie in 1\.\.1048576"),
        (
            MOE,
            {
                "model_type": "gpt_oss",
                "sliding_window": 4,
                "layer_types": ["full_attention"] * 3,
            },
            "layer_types has 3 entries where num_hidden_layers is 2",
        ),
        (
            MOE,
            {"model_type": "gpt_oss", "layer_types": [5, 6]},
            "layer_types should be a list of words alone",
        ),
        (MOE, {"model_type": "granitemoe", "logits_scaling": 0}, "logits_scaling=0 must lie above"),
        (QWEN, {"model_type": "qwen2_moe", "decoder_sparse_step": 0}, r"must lie in 1\.\.4096"),
        (QWEN, {"model_type": "qwen2_moe", "mlp_only_layers": [[0]]}, "a list of whole numbers"),
        (
            {**QWEN, "moe_num_experts": 4, "moe_k": 2},
            {"model_type": "ernie4_5_moe", "moe_layer_end_index": 10**12},
            "moe_layer_end_index=1e",
        ),
        (
            DEEPSEEK,
            {"model_type": "deepseek_v3", "num_nextn_predict_layers": 10**9},
            "num_nextn_predict_layers=1e",
        ),
        (
            DEEPSEEK,
            {"model_type": "deepseek_v2", "first_k_dense_replace": -(10**12), "moe_layer_freq": 2},
            "first_k_dense_replace=-1e",
        ),
        (LLAMA, {"model_type": "gemma3_text", "query_pre_attn_scalar": -1}, "must lie above 0"),
        (LLAMA, {"model_type": "gemma3", "text_config": [1]}, "text_config=.* a mapping"),
        (LLAMA, {"model_type": "x" * 10**6}, "is no family that Mixtura reads"),
    ],
)
def test_a_config_out_of_bounds_names_its_key(
    config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    stated = {**config, **changes}
    with pytest.raises(ConfigError, match=f"^config.json: .*{said}") as caught:
        shape_of(family_of(stated).read(stated))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": LAYERS + 1},
        {"width": 2**25},
        {"vocabulary": 2**25},
        {"attention": {"heads": 2**17, "kv_heads": 1, "head_dim": 4}},
        {"moe": {"num_experts": 2**21, "top_k": 1, "expert_width": 4}},
        {"moe": {"num_experts": 4, "top_k": 1, "expert_width": 2**25}},
    ],
)
def test_a_decoder_shape_has_bounds(changes: dict[str, Any]) -> None:
    tree = {
        "layers": 2,
        "width": 16,
        "vocabulary": 61,
        "context": 64,
        "attention": {"heads": 4, "kv_heads": 4, "head_dim": 4},
        "ffn_width": 24,
    }
    assert DecoderShape.parse(tree).layers == 2
    with pytest.raises(ConfigError, match="should be less than or equal to"):
        DecoderShape.parse({**tree, **changes})


def test_a_window_names_layers_that_are_there() -> None:
    heads = {"heads": 4, "kv_heads": 4, "head_dim": 4, "local": {"window": 4, "layers": [0, 2]}}
    with pytest.raises(ConfigError, match=r"local.layers names layer 2, outside 0\.\.layers"):
        DecoderShape.parse(
            {
                "layers": 2,
                "width": 16,
                "vocabulary": 61,
                "context": 64,
                "attention": heads,
                "ffn_width": 24,
            }
        )
