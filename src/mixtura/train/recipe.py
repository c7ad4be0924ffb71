"""A recipe: one YAML file that says everything about a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mixtura.config import Config, Tree, read_yaml, with_overrides
from mixtura.data import (
    BpeConfig,
    BytesConfig,
    ByteTokenizer,
    DataConfig,
    FileConfig,
    GivenConfig,
)
from mixtura.errors import ConfigError
from mixtura.models import ModelConfig
from mixtura.train.config import TrainConfig


class Recipe(Config):
    """Model, data and training. `model.vocabulary` may be left out: it is the tokenizer's."""

    name: str = Field(default="run", min_length=1)
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig

    @model_validator(mode="before")
    @classmethod
    def _vocabulary_from_tokenizer(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        model = tree.get("model")
        if not isinstance(model, Mapping) or "vocabulary" in model:
            return tree
        try:
            vocabulary = _vocabulary(DataConfig.model_validate(tree.get("data", {})))
        except ValidationError:
            # The data section is refused in its turn, and that is the error to show.
            vocabulary = 1
        return {**tree, "model": {**model, "vocabulary": vocabulary}}

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.train.length > self.model.context:
            raise ValueError(
                f"train.length={self.train.length} is longer than the model's "
                f"context={self.model.context}; lower train.length or raise model.context"
            )
        return self

    def tree(self) -> Tree:
        """Plain data that `Recipe.parse` turns back into this recipe."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.tree(), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `train.lr=3e-4` and the like set. Raises ConfigError."""
    return Recipe.parse(with_overrides(read_yaml(path), overrides), str(path))


def differences(ours: Recipe, theirs: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Each dotted key whose values differ, with both; None for a key that one of them lacks.

    `accept_leak` is left out: it allows a run and changes nothing in it.
    """
    left, right = dict(_leaves(ours.tree())), dict(_leaves(theirs.tree()))
    for key in dict.fromkeys([*left, *right]):
        if left.get(key) != right.get(key) and not key.endswith(".accept_leak"):
            yield key, left.get(key), right.get(key)


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_vocabulary(recipe: Recipe, vocabulary: int) -> None:
    """Raises ConfigError where the model has no row for some token."""
    if vocabulary > recipe.model.vocabulary:
        raise ConfigError(
            f"model.vocabulary={recipe.model.vocabulary} is less than the tokenizer's "
            f"{vocabulary} tokens; raise it, or leave it out"
        )


def _vocabulary(data: DataConfig) -> int:
    match data.tokenizer:
        case BytesConfig():
            return ByteTokenizer.vocabulary
        case BpeConfig() as bpe:
            return bpe.vocabulary
        case FileConfig() as file:
            # A tokenizer from a file needs no text to train on.
            return file.build(lambda _: ()).vocabulary
        case GivenConfig() as given:
            return given.vocabulary
