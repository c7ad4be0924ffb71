"""Translates RoPE's settings from a GGUF file's metadata to config.json, and back.

P pairs of dims that RoPE rotates in a head.
"""

import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree
from mixtura.errors import ConfigError

# Published models whose files hold RoPE's factors (Llama 3.1, 3.2 and 3.3) all have these settings.
# Only the scaling factor differs: it is the largest number in the file's tensor of factors.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_ROPE_BASE = 10_000.0
LOG_MULTIPLIER = ".rope.scaling.yarn_log_multiplier"
# Further settings of YaRN and their defaults. Other values raise an error, because config.json has
# other names or other units for these settings.
_YARN_DEFAULTS = {
    ".rope.scaling.attn_factor": 1.0,
    LOG_MULTIPLIER: 0.0,
    ".rope.scaling.yarn_ext_factor": 1.0,
    ".rope.scaling.yarn_attn_factor": 1.0,
    ".rope.scaling.yarn_beta_fast": 32.0,
    ".rope.scaling.yarn_beta_slow": 1.0,
}


def rope_parameters(
    metadata: Metadata,
    head_dim: int,
    factors_P: NDArray[np.float32] | None,
    read_elsewhere: Container[str] = (),
) -> dict[str, Any]:
    """Make config.json's `rope_parameters`; `factors_P` is the tensor rope_freqs.weight, if any.

    `read_elsewhere` holds keys of YaRN's settings that the caller reads; they may have any value.
    Raises CheckpointError for a RoPE scaling that is not supported.
    """
    base = metadata.number(".rope.freq_base", _ROPE_BASE)
    scaling = _stated(metadata, read_elsewhere)
    if factors_P is not None:
        if scaling["rope_type"] != "default":
            stated = scaling["rope_type"]
            raise metadata.error(
                ".rope.scaling.type",
                f"{stated!r}, beside factors in rope_freqs.weight; expected none",
            )
        scaling = _from_factors(metadata, base, head_dim, factors_P)
    return {"rope_theta": base, **scaling}


def rope_keys(scaling: Mapping[str, Any] | None, architecture: str) -> Tree:
    """Translate `rope_scaling` of Mixtura's attention config to metadata.

    Llama 3.1's scaling has no metadata, because GGUF holds it as a tensor (see `factors_of`).
    Raises ConfigError for a scaling that GGUF cannot hold.
    """
    if scaling is None or scaling["kind"] == "llama3":
        return {}
    if scaling["kind"] not in {"linear", "yarn"}:
        raise ConfigError(
            f"attention.rope_scaling.kind={scaling['kind']!r} has no place in a GGUF file of the "
            f"architecture {architecture}; linear, llama3 and yarn have"
        )
    found: Tree = {
        ".rope.scaling.type": scaling["kind"],
        ".rope.scaling.factor": scaling["factor"],
    }
    if scaling["kind"] == "yarn":
        found[".rope.scaling.original_context_length"] = scaling["original_context"]
    return found


def factors_of(attention: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """The tensor rope_freqs.weight for Llama 3.1's scaling of RoPE; None for any other scaling."""
    scaling = attention["rope_scaling"]
    if scaling is None or scaling["kind"] != "llama3":
        return None
    rope_dim = attention["rotated_dim"] or attention["head_dim"]
    factors_P = llama3_factors(attention["rope_base"], rope_dim, scaling["factor"])
    return factors_P.astype(np.float32)


def _stated(metadata: Metadata, read_elsewhere: Container[str]) -> dict[str, Any]:
    # Older files state only a factor, `scale_linear`, and no type of scaling.
    older = metadata.number(".rope.scale_linear", 1.0)
    kind = metadata.text(".rope.scaling.type", "linear" if older != 1 else "none")
    if kind == "none":
        return {"rope_type": "default"}
    factor = metadata.number(".rope.scaling.factor", older)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        for key, default in _YARN_DEFAULTS.items():
            given = metadata.number(key, default)
            if given != default and key not in read_elsewhere:
                raise metadata.error(key, f"{given:g}; with YaRN only {default:g} is read")
        original = metadata.count(".rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise metadata.error(".rope.scaling.type", f"{kind!r}, expected none, linear or yarn")


def _from_factors(
    metadata: Metadata, base: float, head_dim: int, factors_P: NDArray[np.float32]
) -> dict[str, Any]:
    factor = float(factors_P.max(initial=1))
    if (factors_P == 1).all():
        return {"rope_type": "default"}
    # The shape is compared first, because `np.allclose` raises an error for different shapes.
    if factors_P.shape != (head_dim // 2,) or not np.allclose(
        factors_P, llama3_factors(base, head_dim, factor), rtol=1e-3
    ):
        raise metadata.error(
            ".rope.freq_base",
            f"{base:g}, and rope_freqs.weight holds factors of shape {factors_P.shape} up to "
            f"{factor:g} that are not Llama 3.1's with it; give the model's Hugging Face folder",
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def llama3_factors(base: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    """The numbers by which llama.cpp divides RoPE's frequencies in a model like Llama 3.1.

    A frequency with a wavelength below `original / high` is kept. A frequency with a wavelength
    above `original / low` is divided by `factor`. In between, the two results are blended.
    """
    original = _LLAMA3["original_max_position_embeddings"]
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    wave_P = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    kept_P = np.clip((original / wave_P - low) / (high - low), 0, 1)
    return 1 / ((1 - kept_P) / factor + kept_P)
