"""A tiny MoE's run, its dense twin's, and what a report needs to open them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints.loaded_run import load_run
from mixtura.data import prepare
from mixtura.insight import Subject
from mixtura.models import DecoderConfig
from mixtura.runs import Recipe, load_recipe
from mixtura.shapes import dense_twin
from mixtura.train import train

Open = Callable[[Path], Subject]


@pytest.fixture(scope="session")
def corpora(tiny_cache: Path) -> Path:
    return tiny_cache / "corpora"


@pytest.fixture(scope="session")
def open_subject(corpora: Path) -> Open:
    def opened(run: Path) -> Subject:
        loaded = load_run(run)
        return Subject(loaded.decoder, prepare(loaded.recipe.data, corpora), loaded.step)

    return opened


@pytest.fixture(scope="session")
def pair(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_recipe: Path, corpora: Path
) -> Path:
    """A folder with the tiny run as `moe`, and its dense twin as `dense`."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(tiny_run, folder / "moe")
    tree = load_recipe(tiny_recipe).tree()
    model = Recipe.parse(tree).model
    assert isinstance(model, DecoderConfig)
    tree["model"] = dense_twin(model).model_dump(mode="json")
    train(Recipe.parse(tree), folder / "dense", cache=corpora)
    return folder


@pytest.fixture
def moe_run(tmp_path: Path, tiny_run: Path) -> Path:
    """A copy of the tiny run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "moe"))
