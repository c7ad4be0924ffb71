"""Reads the settings of NVIDIA's modelopt: FP8 and NVFP4."""

from collections.abc import Mapping
from typing import Any

from mixtura.checkpoints.hf.quantised.fp4 import NVFP4
from mixtura.checkpoints.hf.quantised.layout import Layout
from mixtura.checkpoints.hf.quantised.scaled_fp8 import ScaledFP8
from mixtura.shapes.families.keys import Keys

_FP8 = ScaledFP8(("tensor", "channel"))
_NVFP4 = NVFP4("weight", "weight_scale_2", divides=False)
_LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "FP8": (_FP8,),
    "FP8_PER_CHANNEL_PER_TOKEN": (_FP8,),
    "NVFP4": (_NVFP4,),
    "W4A16_NVFP4": (_NVFP4,),
    # The stored dtype states which of the formats a module has.
    "MIXED_PRECISION": (_FP8, _NVFP4),
}


def modelopt(settings: Mapping[str, Any]) -> tuple[Layout, ...]:
    """Return the layouts of `quant_algo`. Raises ConfigError if it is not supported."""
    keys = Keys(settings, "modelopt", "config.json: quantization_config")
    keys.expect("quant_algo", *_LAYOUTS)
    keys.expect("group_size", 16, None)
    return _LAYOUTS[keys.given("quant_algo", "FP8")]
