"""A recipe: one YAML file that describes a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from mixtura.config import Tree, read_yaml, with_overrides
from mixtura.errors import ConfigError
from mixtura.models import ModelConfig
from mixtura.runs.recipe_sections import RecipeSections


class Recipe(RecipeSections):
    """Model, data and training. The default of `model.vocabulary` is the tokenizer's vocabulary."""

    model: ModelConfig

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        self.check_context(self.model.context)
        return self

    def tree(self) -> Tree:
        """Return the recipe as plain data, from which `Recipe.parse` makes an equal recipe."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.tree(), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file; overrides such as `train.lr=3e-4` replace its values.

    Raises ConfigError.
    """
    return Recipe.parse(with_overrides(read_yaml(path), overrides), str(path))


def differences(ours: Recipe, theirs: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key whose values differ, with both values; None if a key is missing.

    Keys named `accept_leak` are not compared: such a key permits a run, but does not change it.
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
    """Raise ConfigError if the model's vocabulary is smaller than the tokenizer's."""
    if vocabulary > recipe.model.vocabulary:
        raise ConfigError(
            f"model.vocabulary={recipe.model.vocabulary} is less than the tokenizer's "
            f"{vocabulary} tokens; raise it, or leave it out"
        )
