"""Runs of a second or less: width 16, two layers, four experts, bytes of the tiny corpus."""

from pathlib import Path
from typing import Protocol

import pytest

from mixtura.config import Tree, with_overrides
from mixtura.data import Corpus, prepare
from mixtura.runs import Recipe


class MakeRecipe(Protocol):
    def __call__(self, *overrides: str) -> Recipe: ...


@pytest.fixture(scope="session")
def tree(tiny_corpus: Path) -> Tree:
    return {
        "name": "tiny",
        "model": {
            "layers": 2,
            "width": 16,
            "context": 32,
            "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
            "moe": {"num_experts": 4, "top_k": 2, "expert_width": 16},
        },
        "data": {"source": {"kind": "text", "paths": [str(tiny_corpus)]}, "heldout": 0.2},
        "train": {
            "steps": 12,
            "batch": 4,
            "length": 16,
            "warmup": 2,
            "eval_every": 6,
            "eval_tokens": 256,
            "checkpoint_every": 3,
            "log_every": 1,
            "tensorboard": False,
        },
    }


@pytest.fixture(scope="session")
def make_recipe(tree: Tree) -> MakeRecipe:
    """make_recipe("train.steps=5", ...) -> the tiny recipe with these set"""

    def make(*overrides: str) -> Recipe:
        return Recipe.parse(with_overrides(tree, overrides))

    return make


@pytest.fixture(scope="session")
def cache(tiny_cache: Path) -> Path:
    return tiny_cache / "corpora"


@pytest.fixture(scope="session")
def corpus(make_recipe: MakeRecipe, cache: Path) -> Corpus:
    return prepare(make_recipe().data, cache)
