"""LFM2's configs: what is written reads the same, and what is refused."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of

TYPES = ["conv", "full_attention", "conv"]
TINY: dict[str, Any] = {
    "model_type": "lfm2_moe",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 10,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "layer_types": TYPES,
}


def read(**keys: Any) -> dict[str, Any]:
    config = {**TINY, **keys}
    return DecoderConfig.parse(family_of(config).read(config)).model_dump()


@pytest.mark.parametrize("model_type", ["lfm2", "lfm2_moe"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"conv_L_cache": 5, "conv_bias": True, "norm_eps": 1e-3},
        {"tie_word_embeddings": False, "num_dense_layers": 0, "use_expert_bias": False},
        {"layer_types": ["full_attention"] * 3, "norm_topk_prob": False},
        {"routed_scaling_factor": 2.5, "rope_theta": 300.0, "head_dim": 8},
    ],
)
def test_lfm2_written_reads_the_same(model_type: str, keys: dict[str, Any]) -> None:
    decoder = read(model_type=model_type, **keys)
    written = FAMILIES[model_type].write(decoder)
    assert read(**{**written, "model_type": model_type}) == decoder


def test_lfm2_ffn_width_by_hand() -> None:
    # 2/3 of 20 is 13; half as much again is 19; the next multiple of 8 is 24.
    keys = {"block_ffn_dim_multiplier": 1.5, "block_multiple_of": 8}
    assert read(model_type="lfm2", **keys)["ffn_width"] == 24
    assert read(model_type="lfm2", **keys, block_auto_adjust_ff_dim=False)["ffn_width"] == 20
    # 2/3 of 30 is 20, and 24 is the next multiple.
    assert read(model_type="lfm2", block_multiple_of=8, block_ff_dim=30)["ffn_width"] == 24


def test_lfm2_older_keys() -> None:
    assert not read(tie_embedding=False)["tied_head"]
    decoder = read(model_type="lfm2", layer_types=None, full_attn_idxs=[2])
    assert decoder["recurrence"]["layers"] == (0, 1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layer_types": TYPES[:2]}, "layer_types has 2 entries where num_hidden_layers is 3"),
        ({"layer_types": ["conv", "mamba", "full_attention"]}, "layer_types has 'mamba' in a lfm2"),
        ({"layer_types": ["conv"] * 3}, "recurrence.layers names all 3 layers; leave attention"),
        ({"layer_types": None}, "missing key 'layer_types'"),
        ({"attention_bias": True}, "attention_bias=True in a lfm2_moe model"),
        ({"conv_L_cache": 1}, "kernel"),
        ({"block_multiple_of": 0, "model_type": "lfm2"}, "block_multiple_of=0 must lie in 1"),
    ],
)
def test_lfm2_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**keys)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"only": [0, 2]}, r"moe\.placement has experts in layers \[0, 2\]"),
        ({"only": [0, 1]}, r"moe\.placement has experts in layers \[0, 1\]"),
    ],
)
def test_lfm2_moe_has_no_place_for_other_placements(fields: dict[str, Any], said: str) -> None:
    decoder = read(num_dense_layers=0)
    decoder["moe"]["placement"] = {"every": 1, "first_dense": 0, **fields}
    with pytest.raises(ConfigError, match=said):
        FAMILIES["lfm2_moe"].write(decoder)
