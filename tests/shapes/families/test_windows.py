"""Windows by layer, and layers that are not rotated, as their config.json have them."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes import AttentionShape
from mixtura.shapes.families import family_of

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "max_position_embeddings": 128,
    "vocab_size": 288,
}
EXAONE = {**SIZES, "model_type": "exaone_moe"}
FLINT = {**SIZES, "model_type": "flint"}
MELLUM = {**SIZES, "model_type": "mellum"}
GRANITE = {**SIZES, "model_type": "granitemoe_swa"}
TYPES = ["full_attention", "sliding_attention"] * 3


def decoder_from(config: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


def windows(config: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers with a window, and layers that are not rotated."""
    attention = decoder_from(config).attention
    assert isinstance(attention, AttentionShape)
    return attention.local.layers if attention.local else (), attention.unrotated


def test_layers_by_default() -> None:
    # EXAONE: each fourth layer is full. Flint: 0, 1, each fourth from 1 on, and the last.
    assert windows(EXAONE) == ((0, 1, 2, 4, 5), (3,))
    assert windows(FLINT) == ((2, 3, 4), (0, 1, 5))
    assert windows(MELLUM) == ((), ())
    # Granite: layers 0 and 4 are full, and all are rotated.
    assert windows(GRANITE) == ((1, 2, 3, 5), ())
    assert list(decoder_from(FLINT).moe_shapes) == [2, 3, 4, 5]


def test_without_a_window_all_layers_are_rotated() -> None:
    assert windows({**EXAONE, "sliding_window": None}) == ((), ())
    assert windows({**EXAONE, "layer_types": ["full_attention"] * 6}) == ((), (0, 1, 2, 3, 4, 5))


def test_bases_by_kind_of_layer() -> None:
    attention = decoder_from({**MELLUM, "layer_types": TYPES}).attention
    assert [attention.local_base_of(layer) for layer in (0, 1)] == [None, 10_000]
    assert attention.rope_base == 500_000
    bases = {"layer_rope_theta": [0, 100, 500, 100, 500, 0]}
    attention = decoder_from({**GRANITE, **bases, "layer_types": TYPES}).attention
    assert [attention.local_base_of(layer) for layer in range(6)] == [0, 100, None, 100, None, 0]
    assert attention.rope_base == 500


@pytest.mark.parametrize(
    "config",
    [
        EXAONE,
        {**EXAONE, "sliding_window": None},
        {**EXAONE, "layer_types": ["full_attention"] * 6, "first_k_dense_replace": 2},
        FLINT,
        {**FLINT, "layer_types": TYPES, "mlp_only_layers": []},
        MELLUM,
        {**MELLUM, "layer_types": TYPES, "mlp_layer_types": ["dense", "sparse"] * 3},
        GRANITE,
        {**GRANITE, "layer_types": TYPES, "layer_rope_theta": [0, 100, 500, 100, 500, 0]},
        {**SIZES, "model_type": "flex_olmo", "head_dim": None},
        {**SIZES, "model_type": "afmoe", "mup_enabled": True, "layer_types": TYPES},
    ],
)
def test_what_is_written_reads_the_same(config: dict[str, Any]) -> None:
    decoder, family = decoder_from(config), family_of(config)
    written = family.write(decoder.model_dump())
    assert decoder_from(written) == decoder
    assert list(family_of(written).pieces(decoder)) == list(family.pieces(decoder))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SIZES, "model_type": "afmoe", "attention_bias": True}, "attention_bias=True"),
        ({**EXAONE, "attention_bias": True}, "attention_bias=True"),
        ({**EXAONE, "layer_types": TYPES[:3]}, "3 entries where num_hidden_layers is 6"),
        (
            {
                **MELLUM,
                "layer_types": TYPES,
                "rope_parameters": {"sliding_attention": {**YARN, "rope_theta": 1e4}},
            },
            "sliding_attention: rope_type='yarn'",
        ),
        ({**GRANITE, "layer_rope_theta": [1.5, 2, 3, 4, 5, 6]}, "layer_rope_theta="),
        ({**GRANITE, "layer_rope_theta": [500.0] * 5}, "layer_rope_theta="),
    ],
)
def test_what_the_decoder_lacks_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder_from(config)
