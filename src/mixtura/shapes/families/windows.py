"""Families in which `layer_types` names the layers with a window.

In some of them RoPE rotates only the layers with a window.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mixtura.config import Tree
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.llama import Llama, windows_by_type, write_window_types


class WindowsByType(Llama):
    """If the config states a window, the layers that `layer_types` calls sliding have it."""

    rotates_full_layers: ClassVar[bool] = True
    """whether RoPE rotates the layers without a window, in a config that states a window"""

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read_attention(config)
        if self.rotates_full_layers or not keys.integer("sliding_window", 0):
            return tree
        windows = tree["local"]["layers"] if tree["local"] else ()
        layers = range(keys.integer("num_hidden_layers"))
        return {**tree, "unrotated": [layer for layer in layers if layer not in windows]}

    def read_windows(self, keys: Keys) -> Tree | None:
        if not keys.integer("sliding_window", 0):
            return None
        types = keys.given("layer_types") or self.default_types(keys)
        return windows_by_type(keys.with_value("use_sliding_window", value=True), types)

    def default_types(self, keys: Keys) -> list[str]:
        """The value of `layer_types` if the key is absent."""
        return ["full_attention"] * keys.integer("num_hidden_layers")

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        # A config that states no window is read as one in which RoPE rotates every layer.
        if written["sliding_window"] is None and decoder["attention"]["unrotated"]:
            written["sliding_window"] = self.defaults["sliding_window"]
        return written

    def write_windows(self, local: Mapping[str, Any] | None, layers: int) -> Tree:
        written = write_window_types(local, layers)
        return {key: written[key] for key in ("sliding_window", "layer_types")}
