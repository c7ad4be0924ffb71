"""Phi-3.5-MoE's config, both ways."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of
from mixtura.shapes.known import known_config
from mixtura.shapes.rope import LongRopeScaling

SCALING = {
    "type": "longrope",
    "short_factor": [1.0] * 64,
    "long_factor": [2.0] * 64,
    "short_mscale": 1.25,
    "long_mscale": 1.5,
}
# As the release spells it: the type under its old name, the original context outside.
CONFIG = {
    **known_config("phi-3.5-moe"),
    "rope_scaling": SCALING,
    "original_max_position_embeddings": 4096,
}


def parsed(config: Any) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


def test_longrope_with_its_two_amplitudes() -> None:
    scaling = parsed(CONFIG).attention.rope_scaling
    assert isinstance(scaling, LongRopeScaling)
    assert (scaling.short_amplitude, scaling.long_amplitude) == (1.25, 1.5)
    assert (scaling.short[0], scaling.long[0], scaling.original_context) == (1.0, 2.0, 4096)


@pytest.mark.parametrize("config", [CONFIG, known_config("phi-3.5-moe")])
def test_what_is_written_reads_the_same(config: dict[str, Any]) -> None:
    found = parsed(config)
    assert parsed(FAMILIES["phimoe"].write(found.model_dump())) == found


def test_biases() -> None:
    # Attention: 4096 + 2 * 1024 rows in, 4096 out; every norm 4096; the head its vocabulary.
    found = {weight.name: weight.shape for weight in parsed(CONFIG).weights()}
    assert found["blocks.0.attention.qkv.bias"] == (6144,)
    assert found["blocks.0.attention.out.bias"] == (4096,)
    assert found["blocks.0.ffn_norm.bias"] == found["norm.bias"] == (4096,)
    assert found["head.bias"] == (32_064,)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_experts_per_tok": 1}, "num_experts_per_tok=1 in a phimoe model.*=2 alone"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type='linear' in a phimoe model.*'longrope' or 'default'",
        ),
        (
            {"rope_scaling": {**SCALING, "long_mscale": None}},
            "missing key 'long_mscale', which a phimoe model needs",
        ),
        ({"rope_scaling": {**SCALING, "short_factor": 2}}, "short_factor=2 should be a list"),
        ({"rope_scaling": {**SCALING, "short_factor": [1.0]}}, "short has 1 factors and long 64"),
        ({"original_max_position_embeddings": None}, "missing key 'original_max_position"),
    ],
)
def test_what_it_has_not_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed({**CONFIG, **changed})
