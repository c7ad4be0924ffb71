"""Writes a decoder's config.json in the keys of a family, and finds a family for a decoder."""

from collections.abc import Iterable
from typing import Any

from mixtura.checkpoints.source import Source
from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, Family, family_named

# Settings that only training uses: no config.json has them, and no output depends on them.
_TRAINING = ("balance", "capacity", "backend")


def hf_config(config: DecoderConfig, family: Family, like: Source | None = None) -> Tree:
    """Write a config.json in the keys of `family`.

    If the checkpoint `like` is of `family` and its config describes a model with the same outputs,
    the keys of its config are copied. Raises ConfigError, naming the key, if the family's config
    cannot express a setting of the decoder.
    """
    try:
        written = {**family.write(config.model_dump()), "use_cache": True}
    except KeyError as error:
        # A part of the decoder, such as its router, lacks a setting that the family's config has.
        raise ConfigError(
            f"a {family.model_type} config states {error}, which this decoder's parts do not have; "
            "save it as another family"
        ) from error
    again = DecoderConfig.parse(family.read(written), f"{family.model_type} config")
    if difference := difference_of(function_of(again), function_of(config)):
        key, theirs, ours = difference
        raise ConfigError(
            f"{key}={ours!r} has no place in a {family.model_type} config, which says {theirs!r}; "
            "save it as another family"
        )
    if like is not None and like.config.get("model_type") == family.model_type:
        before = DecoderConfig.parse(family.read(like.config))
        if not difference_of(function_of(before), function_of(config)):
            # The weights are written unquantised, so the config must not state a quantisation.
            kept = {k: v for k, v in like.config.items() if k != "quantization_config"}
            kept |= {key: 0 for key in family.drafting_keys if key in kept}
            return {key: value for key, value in kept.items() if key != "torch_dtype"}
    return written


def function_of(config: DecoderConfig) -> Tree:
    """The settings of a config that the model's outputs depend on."""
    tree = config.model_dump(mode="json")
    if tree["moe"] is not None:
        tree["moe"] = {k: v for k, v in tree["moe"].items() if k not in _TRAINING}
    if len(config.moe_shapes) == config.layers:
        # Every layer is an MoE, so the settings of dense FFNs do not matter.
        tree |= {"ffn_width": None, "activation": None}
    return tree


def difference_of(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the first key whose values differ, and both values; None if the trees are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            inner = f"{path}.{key}" if path else key
            if found := difference_of(one.get(key), other.get(key), inner):
                return found
        return None
    return None if one == other else (path, one, other)


def first_family(config: DecoderConfig, among: Iterable[str] = FAMILIES) -> Family:
    """The first family whose config can express all that this decoder computes.

    `llama` is tried first for a dense decoder, `mixtral` for an MoE. Raises
    ConfigError if no family fits, naming the setting that the family tried first cannot express.
    """
    plainest = "llama" if config.moe is None else "mixtral"
    for family in map(family_named, sorted(among, key=lambda one: one != plainest)):
        try:
            hf_config(config, family)
        except ConfigError:
            continue
        return family
    hf_config(config, family_named(plainest))
    raise AssertionError("the line before raises")
