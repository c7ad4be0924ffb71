"""Qwen3-Next's and Qwen3.5's configs: what is written reads the same, and what is refused."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of

DELTA, ATTENTION = "linear_attention", "full_attention"
TINY: dict[str, Any] = {
    "model_type": "qwen3_next",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 12,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "layer_types": [DELTA, ATTENTION, DELTA],
}


def read(**keys: Any) -> dict[str, Any]:
    config = {**TINY, **keys}
    return DecoderConfig.parse(family_of(config).read(config)).model_dump()


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_moe_text"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"linear_conv_kernel_dim": 3, "linear_num_key_heads": 4, "rms_norm_eps": 1e-3},
        {"layer_types": [ATTENTION] * 3, "tie_word_embeddings": True, "rope_theta": 300.0},
        {"partial_rotary_factor": 0.5, "attention_bias": True, "layer_types": None},
    ],
)
def test_qwen3_next_written_reads_the_same(model_type: str, keys: dict[str, Any]) -> None:
    if keys.get("layer_types", "") is None:
        keys = {**keys, "full_attention_interval": 2}
    decoder = read(model_type=model_type, **keys)
    written = FAMILIES[model_type].write(decoder)
    assert read(**{**written, "model_type": model_type}) == decoder


def test_qwen3_next_placements_are_written() -> None:
    keys: dict[str, Any] = {"mlp_only_layers": [0], "norm_topk_prob": False, "intermediate_size": 9}
    decoder = read(**keys)
    assert decoder["moe"]["placement"]["only"] == (1, 2)
    assert read(**FAMILIES["qwen3_next"].write(decoder)) == decoder


def test_every_fourth_layer_of_qwen3_next_attends() -> None:
    decoder = read(num_hidden_layers=9, layer_types=None)
    assert decoder["recurrence"]["layers"] == (0, 1, 2, 4, 5, 6, 8)
    assert decoder["attention"]["output_gate"]
    # A quarter of a head of 8.
    assert decoder["attention"]["rotated_dim"] == 2


def test_qwen3_5_moe_reads_its_text_part() -> None:
    text = {key: value for key, value in TINY.items() if key != "model_type"}
    outer = {"model_type": "qwen3_5_moe", "text_config": text, "vision_config": {"depth": 2}}
    assert read(**outer) == read(model_type="qwen3_5_moe_text")
    with pytest.raises(ConfigError, match="without its vision part would not load; save it as qwe"):
        FAMILIES["qwen3_5_moe"].write(read())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layer_types": [DELTA]}, "layer_types has 1 entries where num_hidden_layers is 3"),
        ({"layer_types": ["mamba", DELTA, ATTENTION]}, "layer_types has 'mamba' in a qwen3_next"),
        ({"layer_types": [DELTA] * 3}, "recurrence.layers names all 3 layers; leave attention"),
        ({"linear_num_value_heads": 3}, "value_heads=3 must be a multiple of key_heads=2"),
        ({"linear_conv_kernel_dim": 17}, "kernel"),
        ({"full_attention_interval": 0}, "full_attention_interval=0 must lie in 1"),
        ({"model_type": "qwen3_5_moe_text", "norm_topk_prob": False}, "norm_topk_prob=False in a"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ],
)
def test_qwen3_next_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**keys)
