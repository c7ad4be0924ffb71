"""Families of models: each converts a config.json and tensor names to Mixtura's, and back."""

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mixtura.errors import ConfigError
from mixtura.registry import Registry
from mixtura.shapes.families.family import Family, Piece, shape_of
from mixtura.shapes.families.missing_parts import MISSING_PARTS, in_words

# For each model_type, the module and the class of its family.
_HOMES = {
    "llama": ("llama", "Llama"),
    "mistral": ("llama", "Mistral"),
    "qwen2": ("llama", "Qwen2"),
    "qwen3": ("llama", "Qwen3"),
    "mixtral": ("mixtral", "Mixtral"),
    "olmoe": ("mixtral", "Olmoe"),
    "qwen2_moe": ("mixtral", "Qwen2Moe"),
    "qwen3_moe": ("mixtral", "Qwen3Moe"),
    "gpt_oss": ("gpt_oss", "GptOss"),
    "dbrx": ("dbrx", "Dbrx"),
    "gemma3_text": ("gemma3", "Gemma3Text"),
    "gemma3": ("gemma3", "Gemma3"),
    "granitemoe": ("granite", "GraniteMoe"),
    "granitemoeshared": ("granite", "GraniteMoeShared"),
    "granitemoehybrid": ("granite_hybrid", "GraniteMoeHybrid"),
    "granitemoe_swa": ("granite", "GraniteMoeSwa"),
    "phimoe": ("phimoe", "PhiMoe"),
    "ernie4_5_moe": ("ernie", "Ernie45Moe"),
    "qwen3_next": ("qwen3_next", "Qwen3Next"),
    "qwen3_5_moe": ("qwen3_next", "Qwen35Moe"),
    "qwen3_5_moe_text": ("qwen3_next", "Qwen35MoeText"),
    "lfm2": ("lfm2", "Lfm2"),
    "lfm2_moe": ("lfm2", "Lfm2Moe"),
    "deepseek_v2": ("deepseek", "DeepseekV2"),
    "deepseek_v3": ("deepseek", "DeepseekV3"),
    "kimi_k2": ("deepseek", "KimiK2"),
    "glm4_moe": ("glm", "Glm4Moe"),
    "solar_open": ("glm", "SolarOpen"),
    "dots1": ("dots", "Dots1"),
    "minimax_m2": ("minimax", "MiniMaxM2"),
    "hunyuan_v1_moe": ("hunyuan", "HunyuanMoeV1"),
    "hy_v3": ("hunyuan", "HyV3"),
    "aria_text": ("aria", "AriaText"),
    "sarvam_moe": ("sarvam", "SarvamMoe"),
    "sarvam_mla": ("sarvam", "SarvamMla"),
    "flex_olmo": ("mixtral", "FlexOlmo"),
    "exaone_moe": ("exaone", "ExaoneMoe"),
    "flint": ("flint", "Flint"),
    "mellum": ("mellum", "Mellum"),
    "afmoe": ("afmoe", "Afmoe"),
    "glm4_moe_lite": ("glm", "Glm4MoeLite"),
}


_REGISTERED: Registry[Family] = Registry("model_type", "mixtura.families")
"""the families that other packages have registered"""


class _Families(Mapping[str, Family]):
    """All families by model_type. A family is imported at first use: a command needs only one."""

    def __init__(self) -> None:
        self._built: dict[str, Family] = {}

    def __getitem__(self, model_type: str) -> Family:
        if model_type not in _HOMES:
            return _REGISTERED.get(model_type)
        if model_type not in self._built:
            module, name = _HOMES[model_type]
            self._built[model_type] = getattr(import_module(f"{__name__}.{module}"), name)()
        return self._built[model_type]

    def __contains__(self, model_type: object) -> bool:
        return model_type in _HOMES or model_type in _REGISTERED.names()

    def __iter__(self) -> Iterator[str]:
        return iter((*_HOMES, *_REGISTERED.names()))

    def __len__(self) -> int:
        return len(_HOMES) + len(_REGISTERED.names())


FAMILIES: Mapping[str, Family] = _Families()


def register_family(family: Family) -> None:
    """Add a family of another package, so that its checkpoints can be read and written.

    Raises ValueError if the family's `model_type` is already in use.
    """
    if family.model_type in _HOMES:
        raise ValueError(f"model_type={family.model_type!r} is Mixtura's own; choose another")
    _REGISTERED.add(family.model_type, family)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises ConfigError for an unknown model_type; the error names the nearest families.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(
            "config.json: missing key 'model_type', which says what kind of model this is"
        )
    try:
        return family_named(model_type).of_config(config)
    except ConfigError as error:
        raise ConfigError(f"config.json: {str(error).removeprefix('config.json: ')}") from error


def family_named(model_type: str) -> Family:
    """The family of a model_type.

    Raises ConfigError for an unknown name; the error gives the nearest names. Raises ConfigError
    for a family that Mixtura does not read, too; the error gives the parts that Mixtura lacks.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    listed = "docs/families.md lists the families that it reads"
    if model_type in MISSING_PARTS:
        raise ConfigError(
            f"model_type={model_type!r} needs {in_words(MISSING_PARTS[model_type])}, which Mixtura "
            f"lacks; {listed}"
        )
    near = difflib.get_close_matches(model_type, FAMILIES, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else listed
    raise ConfigError(f"model_type={model_type!r:.60} is no family that Mixtura reads; {hint}")


__all__ = [
    "FAMILIES",
    "MISSING_PARTS",
    "Family",
    "Piece",
    "family_named",
    "family_of",
    "register_family",
    "shape_of",
]
