"""Gemma 3: counts, two spellings of its rotary bases, its windows, and what is refused."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes.families import family_named, shape_of

FAMILY = family_named("gemma3_text")
IMAGES = family_named("gemma3")
# As google/gemma-3-1b-it has it, in the spelling of its day.
ONE: dict[str, Any] = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
# As google/gemma-3-4b-it has it: what it leaves out has a default.
FOUR: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


def test_counts() -> None:
    # A layer: qkv (4 + 2) * 256 * 1152 = 1,769,472; out 1024 * 1152 = 1,179,648; the FFN
    # 3 * 1152 * 6912 = 23,887,872; norms 4 * 1152 + 2 * 256 = 5,120: 26,842,112 in all, 26 times
    # 697,894,912. The tied table 262144 * 1152 = 301,989,888, the last norm 1,152.
    shape = shape_of(FAMILY.read(ONE))
    assert shape.total_parameters() == 999_885_952
    assert shape.active_parameters("B") == 999_885_952


def test_five_of_six_layers_have_a_window_and_a_base_of_their_own() -> None:
    attention = shape_of(FAMILY.read(ONE)).attention
    assert [layer for layer in range(26) if attention.window_of(layer) is None] == [5, 11, 17, 23]
    assert attention.window_of(0) == 512
    assert (attention.local_base_of(0), attention.local_base_of(5)) == (10_000, None)
    assert attention.rope_base == 1_000_000


def test_both_spellings_of_the_bases() -> None:
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 13,
    }
    old = {
        "rope_theta": 500.0,
        "rope_local_base_freq": 40.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    bare = {key: value for key, value in ONE.items() if "rope" not in key}
    found = FAMILY.read({**bare, **new})
    assert found == FAMILY.read({**bare, **old})
    assert found["attention"]["rope_scaling"] == {"kind": "linear", "factor": 8.0}
    assert found["attention"]["local"]["rope_base"] == 40


def test_scale_and_embedding() -> None:
    # 256^-0.5 = 1/16; 1152 = 2 * 24^2, so its root is 24 sqrt 2.
    tree = FAMILY.read(ONE)
    assert tree["attention"]["scale"] == 1 / 16
    assert tree["multipliers"]["embedding"] == pytest.approx(24 * 2**0.5)
    # 168^-0.5 = 0.07715...; written as a whole number again.
    tree = FAMILY.read({**ONE, "query_pre_attn_scalar": 168})
    assert FAMILY.write(shape_of(tree).model_dump())["query_pre_attn_scalar"] == 168


def test_the_text_part_of_a_model_with_images() -> None:
    # By default 8 heads of 256 dims, 4 that hold keys.
    shape = shape_of(IMAGES.read(FOUR))
    assert (shape.attention.heads, shape.vocabulary, shape.context) == (8, 262_208, 131_072)
    # A layer: (8 + 8) * 256 * 2560 + 2048 * 2560 + 3 * 2560 * 10240 + 4 * 2560 + 512 = 94,382,592,
    # 34 times 3,209,008,128; the table 262208 * 2560 = 671,252,480; the last norm 2,560.
    assert shape.total_parameters() == 3_880_263_168
    names = [piece.stored for piece in IMAGES.pieces(shape)]
    assert all(name.startswith("language_model.model.") for name in names)


def test_the_text_part_is_saved_as_a_text_model() -> None:
    decoder = shape_of(IMAGES.read(FOUR)).model_dump()
    with pytest.raises(ConfigError, match="save it as gemma3_text"):
        IMAGES.write(decoder)
    again = FAMILY.read(FAMILY.write(decoder))
    assert shape_of(again) == shape_of(IMAGES.read(FOUR))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("use_bidirectional_attention", True),
        ("hidden_activation", "silu"),
    ],
)
def test_what_the_decoder_has_not_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} in a gemma3_text model"):
        FAMILY.read({**ONE, key: value})


def test_a_scaled_local_base_is_refused() -> None:
    local = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ConfigError, match="sliding_attention: rope_type='linear'"):
        FAMILY.read({**ONE, "rope_parameters": {"sliding_attention": local}})
