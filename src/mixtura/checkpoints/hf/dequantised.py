"""Checkpoints in packed formats, read as if they were plain: one class a format."""

from collections.abc import Callable, Mapping

from mixtura.checkpoints.hf.block_fp8 import BlockFP8
from mixtura.checkpoints.hf.mxfp4 import MXFP4
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError

METHODS: Mapping[str, Callable[[Source], Source]] = {"fp8": BlockFP8, "mxfp4": MXFP4}
"""by `quant_method`; each unpacks one tensor at a time, where it is read"""


def dequantised(source: Source) -> Source:
    """The source, its weights in bf16 under their plain names where it holds packed ones.

    Raises ConfigError for a format that is not known.
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
