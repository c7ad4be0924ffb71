"""Granite's MoE config, both ways."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of
from mixtura.shapes.known import known_config

CONFIG = known_config("granite-3.0-1b-a400m")


def parsed(config: Any) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


def test_multipliers() -> None:
    # Logits are divided by 6; scores are multiplied by 1/64, one over a head's width.
    found = parsed(CONFIG)
    assert found.multipliers.embedding == 12
    assert found.multipliers.residual == 0.22
    assert found.multipliers.logits == 1 / 6
    assert found.attention.scale == 1 / 64


@pytest.mark.parametrize("scaling", [1.0, 6.0, 8.0, 49.0, 0.3, 13.37])
def test_what_logits_are_divided_by_is_written_as_it_was_read(scaling: float) -> None:
    # 1 / (1 / 49) is 49.00000000000001 in binary.
    config = parsed({**CONFIG, "logits_scaling": scaling})
    written = FAMILIES["granitemoe"].write(config.model_dump())
    assert written["logits_scaling"] == scaling
    assert parsed(written) == config


@pytest.mark.parametrize("width", [0, 512])
def test_the_shared_expert(width: int) -> None:
    # Three matrices of 1024 x 512 in each of 24 layers.
    stated = {**CONFIG, "model_type": "granitemoeshared", "shared_intermediate_size": width}
    config = parsed(stated)
    more = config.total_parameters() - parsed(CONFIG).total_parameters()
    assert more == 24 * 3 * 1024 * width
    assert parsed(FAMILIES["granitemoeshared"].write(config.model_dump())) == config


def test_another_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_act='gelu' in a granitemoe model"):
        parsed({**CONFIG, "hidden_act": "gelu"})
