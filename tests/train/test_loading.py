import shutil
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.loaded_run import load_run
from mixtura.errors import CheckpointError
from mixtura.runs import RunFolder
from mixtura.train import train


@pytest.fixture(scope="module")
def run(make_recipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    bias = "model.moe.router={kind: sigmoid_topk}"
    train(make_recipe("train.steps=6", bias), out, cache=cache)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def test_a_run_folder_is_all_it_takes(run: Path, copy: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_run(copy)
    assert torch.get_rng_state().equal(before)
    assert loaded.step == 6
    assert loaded.recipe.name == "tiny"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("1 + 2")) == "1 + 2"
    assert not loaded.decoder.training
    newest = RunFolder(run).checkpoints().newest()
    assert newest is not None
    from safetensors.torch import load_file

    saved = load_file(newest / "model.safetensors")
    found = loaded.decoder.state_dict()
    assert found.keys() == saved.keys()
    assert all(found[name].equal(saved[name]) for name in saved)
    assert any(name.endswith("router.bias") for name in saved)
    logits = loaded.decoder(torch.tensor([loaded.tokenizer.encode("1 + 2")])).logits_BSV
    assert logits.isfinite().all()


def test_a_loaded_run_can_be_trained(copy: Path) -> None:
    decoder = load_run(copy).decoder.train()
    decoder(torch.zeros(1, 4, dtype=torch.int64)).logits_BSV.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such run; give the folder that --out"):
        load_run(tmp_path / "absent")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run \(recipe\.yaml is missing\)"):
        load_run(tmp_path)


def test_a_run_without_a_checkpoint(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet; go on training it"):
        load_run(copy)


def test_a_truncated_checkpoint(copy: Path) -> None:
    newest = RunFolder(copy).checkpoints().newest()
    assert newest is not None
    path = newest / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as caught:
        load_run(copy)
    assert str(path) in str(caught.value)
    assert f"remove {newest} to go on from step-00000003" in str(caught.value)


def test_a_recipe_that_was_edited(copy: Path) -> None:
    recipe = copy / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("num_experts: 4", "num_experts: 8"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"router\.weight is \[4, 16\] there, and \[8, 16\]"):
        load_run(copy)
    recipe.write_text(text.replace("layers:", "lairs:"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"unknown key 'model\.lairs'; did you mean 'layers'"):
        load_run(copy)
