"""A decoder's config.json in a family's keys, and the first family that can state a decoder."""

from collections.abc import Iterable
from typing import Any

from mixtura.checkpoints.source import Source
from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, Family, family_named

# Settings of training, which no config.json has and no output depends on.
_TRAINING = ("balance", "capacity", "backend")


def hf_config(config: DecoderConfig, family: Family, like: Source | None = None) -> Tree:
    """A config.json. Raises ConfigError for a key of ours that the family cannot state."""
    try:
        written = {**family.write(config.model_dump()), "use_cache": True}
    except KeyError as error:
        # A part of another kind, such as a router, lacks the setting that this family writes.
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
            # The weights are no longer quantised.
            kept = {k: v for k, v in like.config.items() if k != "quantization_config"}
            kept |= {key: 0 for key in family.drafting_keys if key in kept}
            return {key: value for key, value in kept.items() if key != "torch_dtype"}
    return written


def function_of(config: DecoderConfig) -> Tree:
    """The part of a config that its outputs depend on."""
    tree = config.model_dump(mode="json")
    if tree["moe"] is not None:
        tree["moe"] = {k: v for k, v in tree["moe"].items() if k not in _TRAINING}
    if len(config.moe_shapes) == config.layers:
        # Without dense FFNs no output depends on their width.
        tree |= {"ffn_width": None, "activation": None}
    return tree


def difference_of(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first key whose values differ, and both values; None where all are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            inner = f"{path}.{key}" if path else key
            if found := difference_of(one.get(key), other.get(key), inner):
                return found
        return None
    return None if one == other else (path, one, other)


def first_family(config: DecoderConfig, among: Iterable[str] = FAMILIES) -> Family:
    """The first family whose config can state all that this decoder computes.

    Raises ConfigError, naming what the plainest family lacks.
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
