"""Reads a config.json key by key; errors name the key and what was expected."""

from collections.abc import Mapping
from typing import Any

from mixtura.errors import ConfigError
from mixtura.shapes import bounds

_MISSING = object()
# The bounds (least, most) of the values of some keys. The values are counts that code loops over or
# divides by, or sides of matrices.
_BOUNDS: Mapping[str, tuple[int, int]] = {
    key: limits
    for limits, keys in {
        (1, bounds.LAYERS): (
            *("num_hidden_layers", "n_layers"),
            *("decoder_sparse_step", "moe_layer_freq", "moe_layer_interval"),
            *("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"),
            *("block_multiple_of", "full_attention_interval"),
        ),
        (0, bounds.LAYERS): (
            *(
                "num_nextn_predict_layers",
                "num_mtp_layers",
                "first_k_dense_replace",
                "moe_layer_start_index",
            ),
        ),
        (-1, bounds.LAYERS): ("moe_layer_end_index",),
        (1, bounds.EXPERTS): (
            *("num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts"),
        ),
        (1, bounds.HEADS): (
            *("num_attention_heads", "n_heads", "num_key_value_heads", "kv_n_heads"),
        ),
        (1, bounds.SIDE): ("hidden_size", "d_model", "vocab_size", "intermediate_size"),
        (1, bounds.CONTEXT): (
            *("max_position_embeddings", "max_seq_len", "original_max_position_embeddings"),
        ),
    }.items()
    for key in keys
}


class Keys:
    """The keys of a config. Every error names the key, its value, and what was expected.

    A method's `default` replaces an absent or null value. Without a default, the key is required.
    """

    def __init__(self, config: Mapping[str, Any], family: str, path: str = "config.json") -> None:
        self._config, self._family, self._path = config, family, path

    def states(self, key: str) -> bool:
        """Whether the config has the key, even if its value is null."""
        return key in self._config

    def given(self, key: str, default: Any = None) -> Any:
        """The value, which may be of any type."""
        value = self._config.get(key)
        return default if value is None else value

    def first(self, *keys: str) -> str:
        """The first of `keys` that has a value, else keys[0]; a setting may have several names."""
        return next((key for key in keys if self.given(key) is not None), keys[0])

    def with_value(self, key: str, *, value: Any) -> "Keys":
        """A copy of these keys, in which `key` has the value `value`."""
        return Keys({**self._config, key: value}, self._family, self._path)

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """A whole number within the key's bounds; a key without bounds allows -2^53..2^53."""
        found = self._typed(key, default, int, "a whole number")
        self._check_bounds(key, found)
        return found

    def number(self, key: str, default: Any = _MISSING) -> float:
        """0, or a number of absolute value 1e-30..1e30, whose square and inverse are finite."""
        found = float(self._typed(key, default, (int, float), "a number"))
        if found and not 1 / bounds.NUMBER <= abs(found) <= bounds.NUMBER:
            raise ConfigError(
                f"{self._path}: {key}={found:g} is out of bounds; its size must lie in "
                f"{1 / bounds.NUMBER:g}..{bounds.NUMBER:g}, or be 0"
            )
        return found

    def positive(self, key: str, default: Any = _MISSING) -> float:
        found = self.number(key, default)
        if found <= 0:
            raise ConfigError(f"{self._path}: {key}={found:g} must lie above 0")
        return found

    def numbers(self, key: str) -> list[float]:
        return [float(value) for value in self._listed(key, _MISSING, (int, float), "numbers")]

    def integers(self, key: str, default: Any = _MISSING) -> list[int]:
        return self._listed(key, default, int, "whole numbers")

    def words(self, key: str, default: Any = _MISSING) -> list[str]:
        return self._listed(key, default, str, "words")

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        return self._typed(key, default, bool, "true or false")

    def mapping(self, key: str, default: Any = _MISSING) -> Mapping[str, Any]:
        return self._typed(key, default, Mapping, "a mapping")

    def section(self, key: str, default: Any = _MISSING) -> "Keys":
        return Keys(self.mapping(key, default), self._family, f"{self._path}: {key}")

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse values that Mixtura's decoder does not support.

        Raises ConfigError unless the value is one of `allowed`; an absent key counts as allowed[0].
        """
        value = self._config.get(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{self._path}: {key}={value!r:.60} in a {self._family} model; Mixtura runs it "
                f"with {key}={' or '.join(map(repr, allowed))} alone"
            )

    def _check_bounds(self, key: str, found: int | None) -> None:
        least, most = _BOUNDS.get(key, (-bounds.WHOLE, bounds.WHOLE))
        if found is not None and not least <= found <= most:
            raise ConfigError(
                f"{self._path}: {key}={found:.6g} must lie in {least}..{most}, as in every known "
                "model"
            )

    def _listed(self, key: str, default: Any, kind: type | tuple[type, ...], of: str) -> list[Any]:
        found = self._typed(key, default, (list, tuple), f"a list of {of}")
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in found):
            raise ConfigError(f"{self._path}: {key} should be a list of {of} alone")
        return list(found)

    def _typed(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self._config.get(key)
        if value is None:
            if default is _MISSING:
                raise ConfigError(
                    f"{self._path}: missing key {key!r}, which a {self._family} model needs"
                )
            return default
        # In Python a bool is an int, so `isinstance` alone would accept true in place of a number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self._path}: {key}={value!r:.60} should be {expected}")
        return value
