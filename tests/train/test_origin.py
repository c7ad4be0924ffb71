"""Runs that begin with the weights of another model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixtura.checkpoints.conversion import convert_model
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.open_model import open_model
from mixtura.config import Tree, with_overrides
from mixtura.errors import CheckpointError, ConfigError
from mixtura.runs import RunFolder
from mixtura.train import Summary, recipe_and_origin, train


@pytest.fixture(scope="module")
def parent(make_recipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(make_recipe(), tmp_path_factory.mktemp("parent"), cache=cache).folder


@pytest.fixture
def other_text(tree: Tree, tiny_corpus: Path, tmp_path: Path) -> Tree:
    """The tiny recipe without its model, on the same text and one file more."""
    text = tmp_path / "text"
    shutil.copytree(tiny_corpus, text)
    (text / "more.txt").write_text("more " * 50, encoding="utf-8")
    changed = with_overrides(tree, [f"data.source.paths=[{text}]", "name=second"])
    return {key: value for key, value in changed.items() if key != "model"}


def begun(
    tree: Tree, model: str | None, out: Path, cache: Path, *, resume: bool = False
) -> Summary:
    recipe, origin = recipe_and_origin(
        tree, RunFolder(out), model, resume=resume, place="recipe.yaml"
    )
    return train(recipe, out, resume=resume, cache=cache, origin=origin)


def test_from_a_run_begins_with_its_weights(
    parent: Path, other_text: Tree, cache: Path, tmp_path: Path
) -> None:
    # At a rate of almost 0, one step leaves every weight where the parent's stood.
    still = with_overrides(other_text, ["train.steps=1", "train.warmup=0", "train.lr=1e-30"])
    begun(still, str(parent), tmp_path / "run", cache)
    ours, theirs = load_run(tmp_path / "run"), load_run(parent)
    assert ours.recipe.model == theirs.recipe.model
    weights = theirs.decoder.state_dict()
    for name, weight in ours.decoder.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)
    assert ours.recipe.data.tokenizer.kind == "given"
    record = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert (record["model"], record["step"]) == (str(parent), 12)


def test_a_run_with_an_origin_resumes_without_it(
    parent: Path, other_text: Tree, cache: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(parent, copy)
    begun(other_text, str(copy), out, cache)
    shutil.rmtree(copy)
    assert begun(other_text, None, out, cache, resume=True).steps == 12
    assert begun(other_text, str(copy), out, cache, resume=True).steps == 12
    with pytest.raises(CheckpointError, match=r"began with .*copy, not with another"):
        begun(other_text, "another", out, cache, resume=True)


def test_from_a_hugging_face_folder_takes_its_tokenizer(
    parent: Path, other_text: Tree, cache: Path, tmp_path: Path
) -> None:
    convert_model(str(parent), tmp_path / "hf")
    begun(other_text, str(tmp_path / "hf"), tmp_path / "run", cache)
    run = load_run(tmp_path / "run")
    original = load_file(tmp_path / "hf" / "model.safetensors")
    assert run.recipe.model.width == 16
    assert sum(weight.numel() for weight in run.decoder.state_dict().values()) == sum(
        weight.numel() for weight in original.values()
    )
    assert run.tokenizer.encode("aé") == [97, 195, 169]


def test_another_model_or_tokenizer_than_the_origins_is_refused(
    parent: Path, other_text: Tree, tree: Tree, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    wider = with_overrides({**other_text, "model": tree["model"]}, ["model.width=32"])
    with pytest.raises(ConfigError, match=r"model\.width is 32, and 16 in .*leave the section"):
        recipe_and_origin(wider, folder, str(parent), resume=False, place="recipe.yaml")
    bpe = with_overrides(other_text, ["data.tokenizer={kind: bpe}"])
    with pytest.raises(ConfigError, match="goes on with its own tokenizer"):
        recipe_and_origin(bpe, folder, str(parent), resume=False, place="recipe.yaml")
    # Balance and capacity belong to training.
    balanced = with_overrides(
        {**other_text, "model": tree["model"]}, ["model.moe.capacity={policy: drop}"]
    )
    recipe, _ = recipe_and_origin(balanced, folder, str(parent), resume=False, place="r.yaml")
    assert recipe.tree()["model"]["moe"]["capacity"]["policy"] == "drop"


def test_a_run_that_drew_its_weights_cannot_take_an_origin_later(
    parent: Path, tree: Tree, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    with pytest.raises(CheckpointError, match="began with weights of its own"):
        recipe_and_origin(tree, RunFolder(copy), str(parent), resume=True, place="recipe.yaml")


def test_a_start_killed_before_its_first_checkpoint_begins_with_the_origin_again(
    parent: Path, other_text: Tree, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    begun(other_text, str(parent), out, cache)
    whole = load_run(out).decoder.state_dict()
    shutil.rmtree(out / "checkpoints")
    begun(other_text, None, out, cache, resume=True)
    again = load_run(out).decoder.state_dict()
    assert all(whole[name].equal(again[name]) for name in whole | again)


def test_from_a_quantised_file_begins_with_its_own_numbers(
    gguf_of_kinds: Callable[[str, str], Path], other_text: Tree, cache: Path, tmp_path: Path
) -> None:
    file = gguf_of_kinds("Q4_0", "Q4_1")
    still = with_overrides(other_text, ["train.steps=1", "train.warmup=0", "train.lr=1e-30"])
    begun(still, str(file), tmp_path / "run", cache)
    weights = open_model(file, "float32").decoder.state_dict()
    for name, weight in load_run(tmp_path / "run").decoder.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)
