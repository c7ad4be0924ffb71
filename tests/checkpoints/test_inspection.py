"""What recipes and runs say of their models without torch, beside what torch's configs say."""

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from mixtura.checkpoints.inspection import (
    DEFAULT_ROUTER,
    PLAIN_GATES,
    inspect_model,
    inspect_recipe,
    is_recipe,
    model_of_recipe,
)
from mixtura.errors import CheckpointError, ConfigError
from mixtura.moe.routers import ROUTERS, RouterSpec
from mixtura.runs import load_recipe
from mixtura.runs.checkpoint import OPTIMIZER


def test_plain_gates_are_the_routers_of_one_matrix() -> None:
    one_matrix = {
        name for name, kind in ROUTERS.values.items() if kind.config.weights is RouterSpec.weights
    }
    assert one_matrix == PLAIN_GATES


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


def run_with(moe: object, run: Path, folder: Path) -> Path:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["model"]["moe"] = moe
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_inspect_refuses_a_run_whose_moe_is_none(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model: moe"):
        inspect_model(run_with(False, tiny_run, tmp_path))


def test_inspect_leaves_a_routers_kind_to_training(tiny_run: Path, tmp_path: Path) -> None:
    moe = {"num_experts": 4, "top_k": 2, "expert_width": 16, "router": {"kind": ["hash"]}}
    # A list is no kind that has weights of its own, and cannot be looked up as one.
    assert inspect_model(run_with(moe, tiny_run, tmp_path)).family == "decoder"


def test_a_recipe_says_what_its_run_takes() -> None:
    found = inspect_recipe("stdlib-bytes", ["train.steps=100", "train.accumulation=3"])
    recipe = load_recipe(Path("stdlib-bytes"))
    parameters = recipe.model.total_parameters()
    assert found.model.shape.total_parameters() == parameters
    assert list(found.model.shape.weights()) == list(recipe.model.weights())
    # 16 sequences of 256 tokens, three times a step: 12,288.
    assert (found.steps, found.tokens_per_step, found.tokens) == (100, 12_288, 1_228_800)
    assert (found.weight_bytes, found.optimizer_bytes) == (4 * parameters, 8 * parameters)
    assert found.router == recipe.model.model_dump()["moe"]["router"]["kind"] == DEFAULT_ROUTER


def test_the_optimizers_bytes_are_a_checkpoints(tiny_run: Path) -> None:
    found = inspect_recipe(tiny_run / "recipe.yaml")
    state = load_file(next((tiny_run / "checkpoints").iterdir()) / OPTIMIZER)
    moments = [tensor for name, tensor in state.items() if not name.endswith(".step")]
    assert found.optimizer_bytes == sum(tensor.nbytes for tensor in moments)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.widht=64", "unknown key 'model.widht'; did you mean 'width'?"),
        ("model.moe.top_q=2", "unknown key 'model.moe.top_q'; did you mean 'top_k'?"),
        ("train.stepps=9", "unknown key 'train.stepps'; did you mean 'steps'?"),
        ("modle=3", "unknown key 'modle'; did you mean 'model'?"),
        ("train.length=300", r"train\.length=300 is longer than the model's context=256; lower"),
        ("data.tokenizer.kind=byts", "data.tokenizer"),
    ],
)
def test_what_train_refuses_is_refused(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"stdlib-bytes: .*{problem}"):
        inspect_recipe("stdlib-bytes", [override])


def test_what_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_recipe("stdlib-bytes")
    assert is_recipe("mine.yaml")
    assert not is_recipe("mixtral-8x7b")
    (tmp_path / "stdlib-bytes").mkdir()
    assert not is_recipe("stdlib-bytes")
