"""Settings of sampling from a model's own generation_config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mixtura.checkpoints.hf.folder import GENERATION, read_json
from mixtura.config import Tree
from mixtura.engine.sampling import MAX_TOKENS, Sampling
from mixtura.errors import CheckpointError, ConfigError

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """A model's own settings, which a user's settings override."""

    sampling: Tree = field(default_factory=dict)
    """values of fields of `Sampling`, by name"""
    max_tokens: int | None = None
    """the most tokens of an answer"""

    @classmethod
    def of(cls, folder: Path | None) -> "ModelDefaults":
        """The settings in `folder`; none without a generation_config.json.

        Raises CheckpointError for a damaged file.
        """
        path = None if folder is None else folder / GENERATION
        if path is None or not path.is_file():
            return cls()
        return _parsed(read_json(path, "how its model generates"), str(path))

    def over(self, given: Tree) -> Tree:
        """The fields of `Sampling` that a user gave, and the model's own for the others."""
        return {**self.sampling, **given}

    def tokens(self, given: int | None) -> int:
        """The most tokens of an answer: the user's number, else the model's, else MAX_TOKENS."""
        stated = self.max_tokens if given is None else given
        return MAX_TOKENS if stated is None else stated

    def differing(self, given: Mapping[str, object], max_tokens: int | None) -> list[str]:
        """The model's settings that a user did not override, each as `name value`."""
        stated = {name: value for name, value in self.sampling.items() if name not in given}
        if max_tokens is None and self.max_tokens is not None:
            stated["max_tokens"] = self.max_tokens
        return [f"{name} {value:g}" for name, value in stated.items()]


def _parsed(tree: Mapping[str, object], origin: str) -> ModelDefaults:
    stated: Tree = {name: tree[name] for name in _SAMPLING if tree.get(name) is not None}
    # In vLLM -1 keeps all tokens, which is 0 in `Sampling`.
    if stated.get("top_k") == -1:
        stated["top_k"] = 0
    if tree.get("do_sample") is False:
        stated["temperature"] = 0.0
    try:
        whole = Sampling.parse(stated, origin)
    except ConfigError as error:
        raise CheckpointError(f"{error}; mend or remove the file") from error
    longest = tree.get("max_new_tokens")
    # `isinstance` would accept True, which is an int.
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(
            f"{origin}: max_new_tokens={longest!r:.60} must be a whole number from 1 on; mend or "
            "remove the file"
        )
    return ModelDefaults({name: getattr(whole, name) for name in stated}, longest)
