"""Runs that go on with another recipe: what may change, what is kept, what is recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.errors import CheckpointError, ConfigError
from mixtura.runs import ChangedKeys, Recipe, RunFolder, read_journal
from mixtura.train import Summary, View, train


class Told(View):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


GoOn = Callable[..., Summary]


@pytest.fixture
def run(make_recipe, cache: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    train(make_recipe(), out, cache=cache)
    return out


@pytest.fixture
def go_on(make_recipe, cache: Path) -> GoOn:
    """go_on(run, "train.steps=16", ...) -> the run resumed with these set"""

    def resumed(out: Path, *overrides: str, view: View | None = None) -> Summary:
        changed = ChangedKeys.set_by(overrides)
        recipe = make_recipe(*overrides)
        return train(recipe, out, resume=True, changed=changed, cache=cache, view=view)

    return resumed


def test_changed_keys_take_a_schedule_whole() -> None:
    keys = ChangedKeys.set_by(["train.schedule.kind=constant", "train.lr=1e-4"])
    assert keys.keys == ("train.schedule", "train.lr")
    assert "train.schedule.final" in keys
    assert "train.lr" in keys
    assert "train.lr_of_something" not in keys


def test_resume_with_more_steps_goes_on_from_the_last(run: Path, go_on: GoOn) -> None:
    before = (run / "log.jsonl").read_bytes()
    view = Told()
    summary = go_on(run, "train.steps=16", view=view)
    assert (summary.steps, summary.tokens) == (16, 16 * 64)
    assert (run / "log.jsonl").read_bytes().startswith(before)
    assert [record["step"] for record in read_journal(run / "log.jsonl")] == list(range(1, 17))
    # Cosine: 12 of 12 steps end at a tenth of 1e-3; step 13 of 16, after a warm-up of 2, is 11
    # of 14 down: 1e-3 * (0.1 + 0.9 * (1 + cos(pi * 11/14)) / 2) = 1e-3 * 0.198.
    assert view.lines == [
        "train.steps: 12 -> 16, from step 13",
        "learning rate: 0.0001 at step 12, 0.000198 at step 13",
    ]
    assert json.loads((run / "summary.json").read_text())["steps"] == 16


def test_a_change_is_recorded_and_kept_without_naming_it_again(
    run: Path, go_on: GoOn, make_recipe
) -> None:
    go_on(run, "train.steps=16")
    (record,) = read_journal(run / "changes.jsonl")
    assert (record["step"], record["changed"]) == (12, {"train.steps": [12, 16]})
    assert Recipe.parse(record["recipe"]) == make_recipe()
    # The recipe as it was when the run began stands for the run as it is now.
    assert go_on(run).steps == 16
    assert go_on(run, "train.lr=0.01", "train.steps=17").steps == 17
    recorded = RunFolder(run).recorded()
    assert recorded is not None
    assert (recorded.train.steps, recorded.train.lr) == (17, 0.01)
    assert [record["step"] for record in read_journal(run / "changes.jsonl")] == [12, 16]


def test_a_change_in_the_middle_equals_the_same_steps_at_once(
    make_recipe, cache: Path, tmp_path: Path
) -> None:
    # A constant rate: 6 steps and then 12 are the 12 steps of one run.
    constant = "train.schedule={kind: constant}"
    train(make_recipe(constant), tmp_path / "whole", cache=cache)
    train(make_recipe(constant, "train.steps=6"), tmp_path / "run", cache=cache)
    recipe = make_recipe(constant, "train.steps=12")
    changed = ChangedKeys.set_by(["train.steps=12"])
    train(recipe, tmp_path / "run", resume=True, changed=changed, cache=cache)
    losses = [
        [record["loss"] for record in read_journal(tmp_path / name / "log.jsonl")]
        for name in ("whole", "run")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch=8", "train.batch is 4 there and 8 here; a run that goes on cannot change it"),
        ("model.width=32", "model.width is 16 there and 32 here; a run that goes on cannot"),
        ("data.heldout=0.3", "begin another one with --from .*run and another --out"),
    ],
)
def test_what_cannot_change_is_refused(run: Path, go_on: GoOn, override: str, message: str) -> None:
    before = (run / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        go_on(run, override)
    assert (run / "recipe.yaml").read_bytes() == before
    assert not (run / "changes.jsonl").exists()


def test_fewer_steps_than_are_done_are_refused(run: Path, go_on: GoOn) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps=6 must be 12 or more: .*run has done"):
        go_on(run, "train.steps=6")
    assert not (run / "changes.jsonl").exists()


def test_a_difference_that_is_not_named_is_refused_with_the_remedy(
    run: Path, make_recipe, cache: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"change it with --resume --set train\.lr=0\.5"):
        train(make_recipe("train.lr=0.5"), run, resume=True, cache=cache)


def test_a_record_without_its_recipe_is_passed_over(run: Path, go_on: GoOn) -> None:
    old = (run / "recipe.yaml").read_bytes()
    checkpoint = run / "checkpoints" / "step-00000012"
    kept = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    go_on(run, "train.steps=16")
    # As if killed after the record and before recipe.yaml: the run is as it was.
    (run / "recipe.yaml").write_bytes(old)
    for path in (run / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    checkpoint.mkdir()
    for name, content in kept.items():
        (checkpoint / name).write_bytes(content)
    assert go_on(run).steps == 12
    assert go_on(run, "train.steps=14").steps == 14
