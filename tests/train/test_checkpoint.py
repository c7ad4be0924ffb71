import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixtura.data import Corpus
from mixtura.errors import CheckpointError, StorageError
from mixtura.runs.checkpoint import Checkpoints, check_fits, read
from mixtura.train import Trainer, build_trainer

FILES = ["model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json"]


@pytest.fixture
def trainer(make_recipe, corpus: Corpus) -> Trainer:
    return build_trainer(make_recipe(), corpus)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints: Checkpoints, trainer: Trainer) -> Path:
    return checkpoints.save(trainer.state(), "recipe", "corpus", {"torch": "2"})


def save_after(checkpoints: Checkpoints, trainer: Trainer, steps: int) -> Path:
    for _ in range(steps):
        trainer.step()
    return save(checkpoints, trainer)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_everything_comes_back(checkpoints: Checkpoints, trainer: Trainer) -> None:
    state, meta = read(save_after(checkpoints, trainer, 2))
    kept = trainer.state()
    for found, expected in (
        (state.model, kept.model),
        (state.optimizer, kept.optimizer),
        (state.random, kept.random),
        (state.watch, kept.watch),
    ):
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)
    assert (state.step, state.tokens, state.seconds) == (2, 128, trainer.seconds)
    assert (meta.recipe, meta.corpus, meta.versions) == ("recipe", "corpus", {"torch": "2"})


def test_the_model_file_holds_the_ledgers_names(checkpoints: Checkpoints, trainer: Trainer) -> None:
    path = save(checkpoints, trainer)
    weights = {weight.name for weight in trainer.decoder.config.weights()}
    assert set(load_file(path / "model.safetensors")) == weights


def test_a_checkpoint_before_the_first_step(checkpoints: Checkpoints, trainer: Trainer) -> None:
    state, _ = read(save(checkpoints, trainer))
    trainer.restore(state)
    assert trainer.step().step == 1


def test_the_newest_are_kept(checkpoints: Checkpoints, trainer: Trainer) -> None:
    for _ in range(4):
        save_after(checkpoints, trainer, 1)
    assert names(checkpoints) == ["step-00000003", "step-00000004"]
    assert checkpoints.newest() == checkpoints.folder / "step-00000004"


def test_what_a_kill_left_is_cleaned(checkpoints: Checkpoints, trainer: Trainer) -> None:
    save(checkpoints, trainer)
    (checkpoints.folder / ".step-00000001.0a1b2c3d.partial").mkdir()
    checkpoints.clean()
    assert names(checkpoints) == ["step-00000000"]


def test_no_folder_is_no_checkpoint(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    checkpoints.clean()


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named_with_an_older_whole_checkpoint(
    checkpoints: Checkpoints, trainer: Trainer, file: str
) -> None:
    save_after(checkpoints, trainer, 1)
    newest = save_after(checkpoints, trainer, 1)
    (newest / file).unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.attempt(newest, read)
    assert str(caught.value) == (
        f"{newest / file}: is missing; remove {newest} to go on from step-00000001"
    )


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named(checkpoints: Checkpoints, trainer: Trainer, file: str) -> None:
    newest = save_after(checkpoints, trainer, 1)
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="no older checkpoint is whole") as caught:
        checkpoints.attempt(newest, read)
    line = str(caught.value)
    assert line.startswith(f"{newest / file}: ")
    assert "\n" not in line


def test_a_damaged_older_one_is_not_recommended(checkpoints: Checkpoints, trainer: Trainer) -> None:
    older = save_after(checkpoints, trainer, 1)
    newest = save_after(checkpoints, trainer, 1)
    (older / "optimizer.safetensors").write_bytes(b"")
    shutil.rmtree(newest)
    newest.mkdir()
    with pytest.raises(CheckpointError, match="no older checkpoint is whole"):
        checkpoints.attempt(newest, read)


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("model.width=32", r"blocks\.0\..* is \[.*\] there, and \[.*\] in the recipe's model"),
        ("model.layers=1", r"blocks\.1\..* is \[.*\] there, and absent in"),
        ("model.layers=3", r"blocks\.2\..* is absent there, and \[.*\] in"),
        (
            "model.moe.num_experts=8",
            r"blocks\.0\.ffn\.router\.weight is \[4, 16\] there, and",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(
    make_recipe, corpus: Corpus, trainer: Trainer, override: str, difference: str
) -> None:
    other = build_trainer(make_recipe(override), corpus).decoder
    with pytest.raises(CheckpointError, match=rf"^x: of another model: {difference}"):
        check_fits(other, trainer.state().model, Path("x"))


@pytest.mark.parametrize("size", [1000, 20_000, 70_000])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(
    checkpoints: Checkpoints, trainer: Trainer, full_disk, size: int
) -> None:
    older = save_after(checkpoints, trainer, 1)
    trainer.step()
    with (
        full_disk(size),
        pytest.raises(StorageError, match="nothing was half-written: free some space"),
    ):
        save(checkpoints, trainer)
    assert names(checkpoints) == [older.name]
    state, _ = read(older)
    assert state.step == 1
    assert save(checkpoints, trainer).name == "step-00000002"


def test_moments_go_to_the_parameters_that_they_belong_to(
    checkpoints: Checkpoints, trainer: Trainer, make_recipe, corpus: Corpus
) -> None:
    state, _ = read(save_after(checkpoints, trainer, 1))
    other = build_trainer(make_recipe(), corpus)
    other.restore(state)
    for ours, theirs in zip(trainer.decoder.parameters(), other.decoder.parameters(), strict=True):
        moments, restored = trainer.optimizer.state[ours], other.optimizer.state[theirs]
        assert moments.keys() == restored.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments[part], restored[part]) for part in moments)
