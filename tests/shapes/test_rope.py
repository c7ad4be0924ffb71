"""What scales the rotary embedding is bounded, so that tables of angles can be computed."""

import pytest
import torch

from mixtura.errors import ConfigError
from mixtura.models.rotary import angles
from mixtura.shapes.rope import YarnScaling

YARN = {"factor": 2.0, "original_context": 16}


@pytest.mark.parametrize("beta", [1e-9, 1.0, 1e9])
def test_yarn_has_angles_at_the_bounds(beta: float) -> None:
    scaling = YarnScaling.parse({**YARN, "beta_fast": beta, "beta_slow": beta}, "yarn")
    found = angles(torch.arange(4), 8, 10_000.0, scaling)
    assert bool(found.cos_SC.isfinite().all())
    assert bool(found.sin_SP.isfinite().all())


@pytest.mark.parametrize("beta", [0.0, 1e300, float("inf"), 1e-300])
def test_yarn_refuses_turns_out_of_bounds(beta: float) -> None:
    with pytest.raises(ConfigError, match="beta_slow"):
        YarnScaling.parse({**YARN, "beta_slow": beta}, "yarn")
