"""What a model's own generation_config.json says of sampling."""

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
    """Settings that hold where a user gives none."""

    sampling: Tree = field(default_factory=dict)
    """fields of `Sampling`"""
    max_tokens: int | None = None

    @classmethod
    def of(cls, folder: Path | None) -> "ModelDefaults":
        """None are stated where there is no such file. Raises CheckpointError for a damaged one."""
        path = None if folder is None else folder / GENERATION
        if path is None or not path.is_file():
            return cls()
        return _parsed(read_json(path, "how its model generates"), str(path))

    def over(self, given: Tree) -> Tree:
        """Fields of `Sampling`: these, but for those that a user gave."""
        return {**self.sampling, **given}

    def tokens(self, given: int | None) -> int:
        """How long an answer may be: as a user said, else as the model does, else MAX_TOKENS."""
        stated = self.max_tokens if given is None else given
        return MAX_TOKENS if stated is None else stated

    def differing(self, given: Mapping[str, object], max_tokens: int | None) -> list[str]:
        """What of it holds beside what a user gave, in words."""
        stated = {name: value for name, value in self.sampling.items() if name not in given}
        if max_tokens is None and self.max_tokens is not None:
            stated["max_tokens"] = self.max_tokens
        return [f"{name} {value:g}" for name, value in stated.items()]


def _parsed(tree: Mapping[str, object], origin: str) -> ModelDefaults:
    stated: Tree = {name: tree[name] for name in _SAMPLING if tree.get(name) is not None}
    # vLLM's word for all tokens.
    if stated.get("top_k") == -1:
        stated["top_k"] = 0
    if tree.get("do_sample") is False:
        stated["temperature"] = 0.0
    try:
        whole = Sampling.parse(stated, origin)
    except ConfigError as error:
        raise CheckpointError(f"{error}; mend or remove the file") from error
    longest = tree.get("max_new_tokens")
    # True is an int of Python's.
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(
            f"{origin}: max_new_tokens={longest!r:.60} must be a whole number from 1 on; mend or "
            "remove the file"
        )
    return ModelDefaults({name: getattr(whole, name) for name in stated}, longest)
