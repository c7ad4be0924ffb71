"""Converts RoPE settings of a config.json, in the older or newer form, to Mixtura's, and back."""

import math
from collections.abc import Mapping
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.keys import Keys

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def read_rope(
    config: Mapping[str, Any], family: str, default_base: float = 10_000.0, *, partial: bool = False
) -> Tree:
    """The settings `rope_base` and `rope_scaling` of Mixtura's attention.

    `partial` states whether the family may rotate only a part of each head; see `read_rotated`.
    """
    outer = Keys(config, family)
    parameters = rope_keys(outer)
    for place in () if partial else (parameters, outer):
        place.expect(_PARTIAL, None, 1)
    base = parameters.number("rope_theta", 0.0) or outer.number("rope_theta", 0.0)
    return {
        "rope_base": base or default_base,
        "rope_scaling": _read_scaling(parameters, outer, family),
    }


def read_rotated(
    config: Mapping[str, Any], family: str, head_dim: int, default: float
) -> int | None:
    """`rotated_dim` of Mixtura's attention.

    `default` is the rotated share of a head if the config states none.
    """
    outer = Keys(config, family)
    share = rope_keys(outer).number(_PARTIAL, outer.number(_PARTIAL, default))
    if not 0 < share <= 1:
        raise ConfigError(f"config.json: {_PARTIAL}={share:g} must lie above 0 and be 1 at most")
    rotated = int(head_dim * share)
    return None if rotated == head_dim else rotated


def write_rotated(attention: Mapping[str, Any]) -> float:
    """The rotated share of a head, from which `read_rotated` gives the same `rotated_dim`."""
    rotated, head_dim = attention["rotated_dim"], attention["head_dim"]
    share = 1.0 if rotated is None else rotated / head_dim
    # head_dim * share can round to less than `rotated`; `int` of it would then be rotated - 1.
    return share if int(head_dim * share) == (rotated or head_dim) else math.nextafter(share, 1)


def rope_keys(outer: Keys) -> Keys:
    """The section `rope_scaling` (older name) or `rope_parameters`; empty if both are absent."""
    # transformers prefers `rope_scaling` if both are given.
    name = "rope_scaling" if outer.given("rope_scaling") else "rope_parameters"
    return outer.section(name, {})


def write_rope(attention: Mapping[str, Any]) -> Tree:
    """The section `rope_parameters` of a config.json, for the settings of Mixtura's attention."""
    theta = {"rope_theta": attention["rope_base"]}
    scaling = attention["rope_scaling"]
    if scaling is None:
        return {**theta, "rope_type": "default"}
    kind = {"rope_type": scaling["kind"]}
    original = {_ORIGINAL: scaling.get("original_context")}
    match scaling["kind"]:
        case "linear":
            return {**theta, **kind, "factor": scaling["factor"]}
        case "llama3":
            return {
                **theta,
                **kind,
                **original,
                "factor": scaling["factor"],
                "low_freq_factor": scaling["low_factor"],
                "high_freq_factor": scaling["high_factor"],
            }
        case "yarn":
            kept = {key: scaling[key] for key in ("factor", "beta_fast", "beta_slow", "truncate")}
            return {
                **theta,
                **kind,
                **original,
                **kept,
                "attention_factor": scaling["amplitude"],
            }
        case "longrope":
            return {
                **theta,
                **kind,
                **original,
                "short_factor": list(scaling["short"]),
                "long_factor": list(scaling["long"]),
                "attention_factor": scaling["short_amplitude"],
            }
        case other:
            raise ConfigError(f"rope_scaling kind={other} cannot be written to a config.json")


def _read_scaling(keys: Keys, outer: Keys, family: str) -> Tree | None:
    kind = keys.given("rope_type") or keys.given("type") or "default"
    match kind:
        case "default":
            return None
        case "linear":
            return {"kind": "linear", "factor": keys.number("factor")}
        case "llama3":
            return {
                "kind": "llama3",
                "factor": keys.number("factor"),
                "low_factor": keys.number("low_freq_factor"),
                "high_factor": keys.number("high_freq_factor"),
                "original_context": _original(keys, outer),
            }
        case "yarn":
            original = _original(keys, outer)
            context = outer.integer("max_position_embeddings", original)
            factor = keys.number("factor", context / original)
            return {
                "kind": "yarn",
                "factor": factor,
                "original_context": original,
                "beta_fast": keys.number("beta_fast", 32.0),
                "beta_slow": keys.number("beta_slow", 1.0),
                "truncate": keys.flag("truncate", True),
                "amplitude": keys.number("attention_factor", _yarn_amplitude(keys, factor)),
            }
        case "longrope":
            original = _original(keys, outer)
            context = outer.integer("max_position_embeddings", original)
            factor = keys.number("factor", context / original)
            amplitude = keys.number("attention_factor", _longrope_amplitude(factor, original))
            return {
                "kind": "longrope",
                "short": keys.numbers("short_factor"),
                "long": keys.numbers("long_factor"),
                "original_context": original,
                "short_amplitude": amplitude,
                "long_amplitude": amplitude,
            }
        case other:
            raise ConfigError(
                f"config.json: rope_type={other!r:.60} in a {family} model; known here are "
                "default, linear, llama3, yarn and longrope"
            )


def _original(keys: Keys, outer: Keys) -> int:
    """The original context, from the first of three places that states it, as in transformers.

    The places are the outer config's own key (a null there is an error), the same key in the RoPE
    section, and `max_position_embeddings`. Raises ConfigError if none states it.
    """
    if outer.states(_ORIGINAL):
        return outer.integer(_ORIGINAL)
    return keys.integer(_ORIGINAL, outer.integer("max_position_embeddings", None)) or keys.integer(
        _ORIGINAL
    )


def _yarn_amplitude(keys: Keys, factor: float) -> float:
    """The amplitude of YaRN that transformers uses if `attention_factor` is absent."""
    one, all_dims = keys.number("mscale", 0.0), keys.number("mscale_all_dim", 0.0)
    if one > 0 and all_dims > 0:
        return yarn_size(factor, one) / yarn_size(factor, all_dims)
    return yarn_size(factor)


def _longrope_amplitude(factor: float, original: int) -> float:
    """sqrt(1 + ln(factor) / ln(original)), as in LongRoPE's code; 1 for a factor up to 1."""
    if factor <= 1 or original == 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def yarn_size(factor: float, share: float = 1.0) -> float:
    """0.1 * share * ln(factor) + 1 (YaRN, arXiv 2309.00071, eq. 22); 1 for a factor up to 1."""
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0
