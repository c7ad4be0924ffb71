"""Quantised checkpoints, read as if they were in bf16: one class a format."""

from collections.abc import Callable, Mapping

from mixtura.checkpoints.hf.block_fp8 import BlockFP8
from mixtura.checkpoints.hf.mxfp4 import MXFP4
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError

METHODS: Mapping[str, Callable[[Source], Source]] = {"fp8": BlockFP8, "mxfp4": MXFP4}
"""by `quant_method`; each unpacks a tensor when it is read"""


def dequantised(source: Source) -> Source:
    """The source itself, or one that unpacks its quantised weights to bf16 under plain names.

    Raises ConfigError for an unknown format.
    """
    settings = source.config.get("quantization_config")
    if settings is None:
        return source
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"{source.path}: config.json: quantization_config: quant_method={method!r}; Mixtura "
            f"reads {', '.join(METHODS)}, and weights that are not quantised"
        )
    return METHODS[method](source)
