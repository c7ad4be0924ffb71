"""Opens quantised Hugging Face folders as if their weights were not quantised."""

from collections.abc import Callable, Mapping
from typing import Any

from mixtura.checkpoints.hf.block_fp8 import BlockFP8
from mixtura.checkpoints.hf.folder import read_json
from mixtura.checkpoints.hf.mxfp4 import MXFP4
from mixtura.checkpoints.hf.quantised.awq import awq
from mixtura.checkpoints.hf.quantised.compressed_tensors import compressed_tensors
from mixtura.checkpoints.hf.quantised.gptq import gptq
from mixtura.checkpoints.hf.quantised.layout import Layout
from mixtura.checkpoints.hf.quantised.modelopt import modelopt
from mixtura.checkpoints.hf.quantised.scaled_fp8 import scaled_fp8
from mixtura.checkpoints.hf.quantised.source import QuantisedSource
from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError, ConfigError

# modelopt states its settings in this file, and newer versions also in config.json.
_MODELOPT = "hf_quant_config.json"
Settings = Mapping[str, Any]

LAYOUTS: Mapping[str, Callable[[Settings], tuple[Layout, ...]]] = {
    "fp8": scaled_fp8,
    "fbgemm_fp8": scaled_fp8,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "gptq": lambda settings: (gptq(settings),),
    "awq": lambda settings: (awq(settings),),
}
"""maps `quant_method` to a function that reads the layouts of modules from the settings"""
METHODS = (*LAYOUTS, "mxfp4")


def dequantised(source: Source) -> Source:
    """Wrap a quantised source in a Source that unpacks its weights.

    A source that is not quantised is returned unchanged. Raises ConfigError for an unknown format.
    """
    settings = source.config.get("quantization_config")
    if settings is None:
        settings = _of_modelopt(source)
    if settings is None:
        return source
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    # Some versions of modelopt write their algorithm without a quant_method.
    if method is None and isinstance(settings, Mapping) and "quant_algo" in settings:
        method = "modelopt"
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"{source.path}: config.json: quantization_config: quant_method={method!r:.60}; "
            f"Mixtura reads {', '.join(METHODS)}, and weights that are not quantised"
        )
    if method == "mxfp4":
        return MXFP4(source)
    if method == "fp8" and settings.get("weight_block_size") is not None:
        return BlockFP8(source)
    return QuantisedSource(source, LAYOUTS[method](settings), described(method, settings))


def described(method: str, settings: Settings) -> str:
    """Return the method's name, with the format or the algorithm if the settings state one."""
    variant = next(
        (
            settings[key]
            for key in ("quant_algo", "checkpoint_format", "format", "version")
            if isinstance(settings.get(key), str)
        ),
        None,
    )
    return method if variant in (None, method) else f"{method}, {variant}"


def _of_modelopt(source: Source) -> Settings | None:
    path = source.path / _MODELOPT
    if not path.is_file():
        return None
    found = read_json(path, "the settings of modelopt").get("quantization")
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: quantization should hold the settings of modelopt")
    return {"quant_method": "modelopt", **found}
