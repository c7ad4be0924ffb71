"""Reads the `quantization_config` of compressed-tensors, which llm-compressor writes."""

from collections.abc import Mapping
from typing import Any

from mixtura.checkpoints.hf.quantised.fp4 import NVFP4, GroupedMXFP4
from mixtura.checkpoints.hf.quantised.layout import Layout
from mixtura.checkpoints.hf.quantised.scaled_fp8 import ScaledFP8
from mixtura.checkpoints.hf.quantised.tensor_integers import IntQuantized, PackQuantized, Strategy
from mixtura.errors import ConfigError
from mixtura.shapes.families.keys import Keys

_METHOD = "compressed-tensors"
_CONFIG = "config.json: quantization_config"
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)
_MIXED = "mixed-precision"
_STRATEGIES: Mapping[str, Strategy] = {"tensor": "tensor", "channel": "channel", "group": "group"}


def compressed_tensors(settings: Mapping[str, Any]) -> tuple[Layout, ...]:
    """Read the layouts of all `config_groups`, which are groups of modules.

    `ignore` and the groups' targets are not read: the names and dtypes of a module's parts show
    whether it is quantised. Raises ConfigError, naming the key, for settings that are not
    supported.
    """
    keys = Keys(settings, _METHOD, _CONFIG)
    keys.expect("quantization_status", "compressed", None)
    keys.expect("format", *_FORMATS, _MIXED)
    for key in ("sparsity_config", "transform_config"):
        inner = keys.mapping(key, {})
        if inner.get("format") not in (None, "dense") or inner.get("config_groups"):
            raise ConfigError(
                f"{_CONFIG}: {key}={inner!r:.60}; Mixtura reads neither sparse weights nor weights "
                "in a transformed basis"
            )
    groups = keys.mapping("config_groups")
    found = [_layout(keys.section("config_groups"), name, settings) for name in groups]
    # Two groups that differ only in their targets have equal layouts; each layout is kept once.
    layouts = tuple(one for at, one in enumerate(found) if one not in found[:at])
    if not layouts:
        raise ConfigError(f"{_CONFIG}: config_groups is empty; it should give the weights' formats")
    return layouts


def _layout(groups: Keys, name: str, settings: Mapping[str, Any]) -> Layout:
    group = groups.section(name)
    stored_as = group.given("format", settings.get("format"))
    weights = group.section("weights")
    weights.expect("dynamic", False, None)
    match stored_as:
        case "pack-quantized":
            weights.expect("num_bits", 4, 8)
            weights.expect("type", "int")
            return PackQuantized(weights.integer("num_bits"), *_integers(weights))
        case "nvfp4-pack-quantized":
            _expect_fp4(weights, 16)
            return NVFP4("weight_packed", "weight_global_scale", divides=True)
        case "mxfp4-pack-quantized":
            _expect_fp4(weights, 32)
            return GroupedMXFP4()
        case "int-quantized" | "float-quantized" | "naive-quantized":
            weights.expect("num_bits", 8)
            weights.expect("type", "int", "float")
            if weights.given("type", "int") == "float":
                return _fp8(weights)
            return IntQuantized(8, *_integers(weights))
    raise ConfigError(
        f"{_CONFIG}: config_groups: {name}: format={stored_as!r:.60}; Mixtura reads "
        f"{', '.join(_FORMATS)}"
    )


def _integers(weights: Keys) -> tuple[Strategy, int | None, bool]:
    """Read the strategy, the number of columns of a group, and whether zero points are absent."""
    symmetric = weights.flag("symmetric", True)
    size = weights.integer("group_size", None)
    implied = "tensor" if size is None else ("channel" if size == -1 else "group")
    named = weights.given("strategy", implied)
    strategy = _STRATEGIES.get(named) if isinstance(named, str) else None
    if strategy is None or (strategy == "tensor" and not symmetric):
        raise ConfigError(
            f"{_CONFIG}: strategy={named!r:.60} with symmetric={symmetric}; Mixtura reads integers "
            "of the strategies channel and group, and symmetric ones of the strategy tensor"
        )
    if strategy != "group":
        return strategy, None, symmetric
    if size is None or size < 1:
        raise ConfigError(f"{_CONFIG}: group_size={size} should be the columns of a group")
    return strategy, size, symmetric


def _expect_fp4(weights: Keys, group: int) -> None:
    weights.expect("num_bits", 4)
    weights.expect("type", "float")
    weights.expect("symmetric", True)
    weights.expect("group_size", group)


def _fp8(weights: Keys) -> ScaledFP8:
    weights.expect("symmetric", True)
    weights.expect("strategy", "tensor", "channel", "block")
    match weights.given("strategy", "tensor"):
        case "block":
            block = weights.integers("block_structure")
            if len(block) != 2 or min(block) < 1:
                raise ConfigError(
                    f"{_CONFIG}: block_structure={block!r:.60} should be the rows and columns of a "
                    "block, such as [128, 128]"
                )
            return ScaledFP8(("block",), (block[0], block[1]))
        case "channel":
            return ScaledFP8(("channel",))
        case _:
            return ScaledFP8(("tensor",))
