"""Converts `mlp_layer_types` of a config.json to Mixtura's placement of MoEs, and back.

`mlp_layer_types` lists the kind of each layer's FFN: dense or sparse (an MoE).
"""

from collections.abc import Mapping
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.family import shape_of
from mixtura.shapes.families.keys import Keys

_KEY, _KINDS = "mlp_layer_types", ("dense", "sparse")


def read_mlp_types(keys: Keys, first_dense: int) -> Tree:
    """The placement from `mlp_layer_types`.

    If the list is absent, the first `first_dense` layers are dense. Raises ConfigError unless the
    list has one entry for each layer, either dense or sparse.
    """
    if keys.given(_KEY) is None:
        return {"placement": {"first_dense": first_dense}}
    kinds, layers = keys.words(_KEY), keys.integer("num_hidden_layers")
    if len(kinds) != layers:
        raise ConfigError(
            f"config.json: {_KEY} has {len(kinds)} entries where num_hidden_layers is {layers}; it "
            "names each layer once"
        )
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError(f"config.json: {_KEY} has {kind!r:.60}; known are dense and sparse")
    only = [layer for layer, kind in enumerate(kinds) if kind == "sparse"]
    first = layers - len(only)
    if only == list(range(first, layers)):
        return {"placement": {"first_dense": first}}
    return {"placement": {"only": only}}


def write_mlp_types(decoder: Mapping[str, Any]) -> list[str]:
    """The reverse of `read_mlp_types`."""
    sparse = shape_of(decoder).moe_shapes
    return [_KINDS[layer in sparse] for layer in range(decoder["layers"])]
