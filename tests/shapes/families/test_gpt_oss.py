"""gpt-oss: what its config says, what its keys mean where they are absent, and its size."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes.families import family_named, shape_of
from mixtura.shapes.moe import MoEShape

FAMILY = family_named("gpt_oss")
# As openai/gpt-oss-20b has it; gpt-oss-120b differs in layers and experts alone.
SMALL: dict[str, Any] = {
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
LARGE = {
    **SMALL,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
}


@pytest.mark.parametrize(
    ("config", "total", "active", "published"),
    [
        # A layer: qkv 5120 * 2881 = 14,750,720; out 2880 * 4097 = 11,799,360; 64 sinks; two norms
        # 5,760; router E * 2881; an expert 5760 * 2881 + 2880 * 2881 = 24,891,840.
        # 32 experts: 26,555,904 + 92,192 + 796,538,880 = 823,186,976, and 24 layers of it
        # 19,756,487,424; tables 2 * 201088 * 2880 = 1,158,266,880; the last norm 2,880.
        # Four experts at work: 24 * (26,648,096 + 99,567,360) = 3,029,170,944 and the rest.
        (SMALL, 20_914_757_184, 4_187_440_704, (20.91, 3.61)),
        # 128 experts: 26,555,904 + 368,768 + 3,186,155,520 = 3,213,080,192 in each of 36.
        # At work: 36 * (26,924,672 + 99,567,360) = 4,553,713,152 and the rest.
        (LARGE, 116_829_156_672, 5_711_982_912, (116.83, 5.13)),
    ],
)
def test_counts(
    config: dict[str, Any], total: int, active: int, published: tuple[float, float]
) -> None:
    shape = shape_of(FAMILY.read(config))
    assert shape.total_parameters() == total
    assert shape.active_parameters("A") == active
    # B leaves out the embedding's 201088 * 2880 = 579,133,440.
    assert shape.active_parameters("B") == active - 579_133_440
    # In billions, as the model card has them; it too counts the head and not the embedding.
    assert round(total / 1e9, 2) == published[0]
    assert round(shape.active_parameters("B") / 1e9, 2) == published[1]


def test_absent_keys_mean_what_they_mean_in_transformers() -> None:
    absent = ("layer_types", "rope_scaling", "rope_theta", "attention_bias", "head_dim")
    bare = {key: value for key, value in SMALL.items() if key not in absent}
    assert FAMILY.read(bare) == FAMILY.read(SMALL)


def test_windows_lie_in_the_layers_that_are_named() -> None:
    tree = FAMILY.read({**SMALL, "num_hidden_layers": 4, "layer_types": None})
    assert tree["attention"]["local"] == {"window": 128, "layers": [0, 2]}
    assert FAMILY.read({**SMALL, "sliding_window": None})["attention"]["local"] is None


def test_gate_and_up_lie_in_every_other_column() -> None:
    # Two hidden units: columns gate 0, up 0, gate 1, up 1 become rows gate 0, gate 1, up 0, up 1.
    shape = shape_of(FAMILY.read({**SMALL, "intermediate_size": 2, "hidden_size": 6}))
    assert isinstance(shape.moe, MoEShape)
    parts = [
        (list(range(4))[piece.of[-1]], list(range(4))[piece.at[-1]])
        for piece in FAMILY.pieces(shape)
        if piece.stored == "model.layers.0.mlp.experts.gate_up_proj"
        and isinstance(piece.of[-1], slice)
        and isinstance(piece.at[-1], slice)
    ]
    assert parts == [([0, 2], [0, 1]), ([1, 3], [2, 3])]


@pytest.mark.parametrize(
    ("key", "value"),
    [("swiglu_alpha", 1.0), ("swiglu_limit", 9.0), ("hidden_act", "gelu")],
)
def test_what_the_decoder_has_not_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} in a gpt_oss model"):
        FAMILY.read({**SMALL, key: value})
