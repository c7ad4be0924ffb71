"""Families of models: a config.json and names of tensors, both ways, against our decoder."""

import difflib
from collections.abc import Mapping
from typing import Any

from mixtura.errors import ConfigError
from mixtura.shapes.families.dbrx import Dbrx
from mixtura.shapes.families.deepseek import DeepseekV2, DeepseekV3
from mixtura.shapes.families.ernie import Ernie45Moe
from mixtura.shapes.families.family import Family, Piece, shape_of
from mixtura.shapes.families.gemma3 import Gemma3, Gemma3Text
from mixtura.shapes.families.gpt_oss import GptOss
from mixtura.shapes.families.granite import GraniteMoe, GraniteMoeShared
from mixtura.shapes.families.llama import Llama, Mistral, Qwen2, Qwen3
from mixtura.shapes.families.mixtral import Mixtral, Olmoe, Qwen2Moe, Qwen3Moe
from mixtura.shapes.families.phimoe import PhiMoe

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Llama(),
        Mistral(),
        Qwen2(),
        Qwen3(),
        Mixtral(),
        Olmoe(),
        Qwen2Moe(),
        Qwen3Moe(),
        GptOss(),
        Dbrx(),
        Gemma3Text(),
        Gemma3(),
        GraniteMoe(),
        GraniteMoeShared(),
        PhiMoe(),
        Ernie45Moe(),
        DeepseekV2(),
        DeepseekV3(),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises ConfigError with the nearest known ones."""
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
    """Raises ConfigError with the nearest known ones."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(model_type, FAMILIES, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(FAMILIES)}"
    raise ConfigError(f"model_type={model_type!r:.60} is no family that Mixtura knows; {hint}")


__all__ = ["FAMILIES", "Family", "Piece", "family_named", "family_of", "shape_of"]
