"""Granite 4's configs: what is written reads the same, and what is refused."""

from math import inf
from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of

TYPES = ["mamba", "attention", "mamba"]
TINY: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "intermediate_size": 10,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 14,
    "max_position_embeddings": 64,
    "mamba_n_heads": 6,
    "layer_types": TYPES,
}


def read(**keys: Any) -> dict[str, Any]:
    config = {**TINY, **keys}
    return DecoderConfig.parse(family_of(config).read(config)).model_dump()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"mamba_d_head": 8, "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_d_conv": 2},
        {"mamba_conv_bias": False, "mamba_proj_bias": True, "rms_norm_eps": 1e-3},
        {"position_embedding_type": "rope", "rope_theta": 300.0, "logits_scaling": 6.0},
        {"num_local_experts": 0, "embedding_multiplier": 12.0},
        {"layer_types": ["attention"] * 3},
        {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
        {"time_step_limit": [0.5, {"__float__": "Infinity"}]},
        {"time_step_limit": [0.0, 3.5]},
    ],
)
def test_granite_hybrid_written_reads_the_same(keys: dict[str, Any]) -> None:
    decoder = read(**keys)
    written = FAMILIES["granitemoehybrid"].write(decoder)
    again = DecoderConfig.parse(FAMILIES["granitemoehybrid"].read(written)).model_dump()
    assert again == {**decoder, "ffn_width": again["ffn_width"]}


def test_granite_hybrid_by_hand() -> None:
    # mamba_expand 2 of a width of 24 is 48, for 6 heads of 8.
    recurrence = read(layer_types=["linear_attention", "full_attention", "mamba"])["recurrence"]
    assert (recurrence["head_dim"], recurrence["layers"]) == (8, (0, 2))
    assert (recurrence["least_step"], recurrence["most_step"]) == (0, None)
    assert read(time_step_limit=(0.1, inf))["recurrence"]["least_step"] == 0.1
    assert read()["attention"]["unrotated"] == (0, 1, 2)
    assert read(position_embedding_type="rope")["attention"]["unrotated"] == ()
    # Without experts the shared MLP is the FFN.
    dense = read(num_local_experts=0)
    assert (dense["moe"], dense["ffn_width"]) == (None, 14)
    assert read(layers_block_type=TYPES, layer_types=None)["recurrence"]["layers"] == (0, 2)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layer_types": TYPES[:2]}, "layer_types has 2 entries where num_hidden_layers is 3"),
        (
            {"layer_types": ["mamba", "conv", "attention"]},
            "layer_types has 'conv' in a granitemoeh",
        ),
        ({"layer_types": None}, "recurrence.layers names all 3 layers; leave attention"),
        ({"mamba_d_head": 9}, "mamba_n_heads=6 with mamba_d_head=9 must make up"),
        ({"mamba_n_heads": 5}, "mamba_n_heads=5 with mamba_d_head=9 must make up"),
        ({"mamba_n_heads": 0}, "mamba_n_heads=0 with mamba_d_head=48 must make up"),
        ({"mamba_n_groups": 4}, "heads=6 must be a multiple of groups=4"),
        ({"mamba_d_conv": 1}, "kernel"),
        ({"time_step_limit": [0.1]}, r"time_step_limit=\[0.1\] should be the least and the most"),
        ({"time_step_limit": ["a", 1]}, "should be the least and the most step"),
        ({"time_step_limit": [2.0, 1.0]}, "most_step=1 must be at least least_step=2"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type='alibi' in a granitemoeh"),
    ],
)
def test_granite_hybrid_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**keys)


@pytest.mark.parametrize(
    ("recurrence", "said"),
    [
        ({"kind": "short_conv", "kernel": 3}, "recurrence.kind='short_conv' has no place"),
        ({"heads": 5}, r"heads \* recurrence.head_dim=40 has no place"),
    ],
)
def test_granite_hybrid_has_no_place_for_other_mixers(
    recurrence: dict[str, Any], said: str
) -> None:
    decoder = read()
    with pytest.raises(ConfigError, match=said):
        FAMILIES["granitemoehybrid"].write(
            {**decoder, "recurrence": {**decoder["recurrence"], **recurrence}}
        )
