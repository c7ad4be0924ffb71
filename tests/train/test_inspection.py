"""What recipes and runs say of their models without torch, beside what torch's configs say."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from mixtura.errors import CheckpointError, ConfigError
from mixtura.moe.routers.router import RouterSpec
from mixtura.train import load_recipe
from mixtura.train.inspection import GATES_OF_THEIR_OWN, inspect_model, model_of_recipe


def kinds_with_own_weights(spec: type[RouterSpec]) -> set[str]:
    found: set[str] = set()
    for own in spec.__subclasses__():
        found |= kinds_with_own_weights(own)
        if "kind" in own.model_fields and own.weights is not RouterSpec.weights:
            found |= set(get_args(own.model_fields["kind"].annotation))
    return found


def test_gates_that_are_not_one_matrix_are_known() -> None:
    assert kinds_with_own_weights(RouterSpec) == GATES_OF_THEIR_OWN


@pytest.mark.parametrize("router", [None, {"kind": "switch"}, {"kind": "noisy_topk"}])
def test_a_recipe_counts_as_its_model_does(
    tiny_recipe: Path, tmp_path: Path, router: dict[str, str] | None
) -> None:
    tree = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    tree["model"]["vocabulary"] = 300
    if router is not None:
        tree["model"]["moe"] |= {"router": router, "top_k": 1 if router["kind"] == "switch" else 2}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    found, wanted = model_of_recipe(path), load_recipe(path).model
    assert found.kind == "decoder"
    for convention in ("A", "B"):
        assert found.shape.active_parameters(convention) == wanted.active_parameters(convention)
    assert list(found.shape.weights()) == list(wanted.weights())


def test_a_run_keeps_its_whole_config(tiny_run: Path) -> None:
    found = inspect_model(tiny_run)
    assert found.family == "decoder"
    assert found.config == load_recipe(tiny_run / "recipe.yaml").model.model_dump(mode="json")


def test_a_recipe_without_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no section 'model'"):
        model_of_recipe(path)
    with pytest.raises(CheckpointError, match=r"'model'.* written by another version of Mixtura"):
        inspect_model(tmp_path)
