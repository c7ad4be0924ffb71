"""Opens quantised Hugging Face checkpoints as if their weights were stored in bf16."""

from collections.abc import Callable, Mapping

from mixtura.checkpoints.hf.block_fp8 import BlockFP8
from mixtura.checkpoints.hf.mxfp4 import MXFP4
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError

METHODS: Mapping[str, Callable[[Source], Source]] = {"fp8": BlockFP8, "mxfp4": MXFP4}
"""maps `quant_method` to a class of Source that unpacks a tensor when the tensor is read"""


def dequantised(source: Source) -> Source:
    """Wrap a quantised source in a Source that unpacks its weights to bf16.

    A source that is not quantised is returned unchanged. Raises ConfigError for an unknown format.
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
