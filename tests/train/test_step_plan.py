"""Another number of steps on the way: the schedule's end, and what a resumed run makes of it."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.data import Corpus
from mixtura.errors import CheckpointError
from mixtura.insight.recorded_run import RecordedRun
from mixtura.runs import ChangedKeys, Recipe, RunFolder, read_journal
from mixtura.runs.step_plan import Correction, StepPlan
from mixtura.runs.train_config import TrainConfig
from mixtura.train import Summary, View, opened_run, train, train_in_turn


def corrected(steps: int, *corrections: tuple[int, int]) -> StepPlan:
    return StepPlan(
        steps, tuple(Correction(after=a, steps=s, reason="slow") for a, s in corrections)
    )


def test_places_by_hand() -> None:
    # Of 20 steps 10 are taken one by one; then the other 10 by twos, so that step 15 is the last.
    plan = corrected(20, (10, 15))
    assert plan.last == 15
    places = [plan.place(step) for step in (1, 10, 11, 12, 15)]
    assert places == pytest.approx([1, 10, 12, 14, 20], rel=1e-12)
    # After step 12, at 14, there are 18 in all: 6 steps for the 6 places left.
    plan = plan.corrected(Correction(after=12, steps=18, reason="quick again"))
    assert [plan.place(step) for step in (12, 13, 18)] == pytest.approx([14, 15, 20], rel=1e-12)


def test_a_plan_without_corrections_is_the_recipes_to_the_last_bit() -> None:
    assert all(StepPlan(steps).place(step) == step for steps in (7, 2400) for step in (1, 5, steps))


@given(
    st.integers(2, 500), st.lists(st.tuples(st.integers(1, 50), st.integers(1, 200)), max_size=4)
)
def test_the_rate_never_jumps_and_ends_at_the_schedules_end(
    steps: int, moves: list[tuple[int, int]]
) -> None:
    plan, done = StepPlan(steps), 0
    for taken, left in moves:
        done = min(done + taken, plan.last - 1)
        plan = plan.corrected(Correction(after=done, steps=done + left, reason="slow"))
    places = [plan.place(step) for step in range(plan.last + 1)]
    assert places[0] == 0
    assert places[-1] == pytest.approx(steps, rel=1e-12)
    assert all(later > earlier for earlier, later in pairwise(places))
    # A correction changes no step that was taken before it.
    earlier = StepPlan(steps, plan.corrections[:-1])
    if plan.corrections:
        after = plan.corrections[-1].after
        assert places[: after + 1] == [earlier.place(step) for step in range(after + 1)]
    config = TrainConfig(steps=steps, batch=1, length=1, lr=1.0)
    assert config.learning_rate(plan.place(plan.last)) == pytest.approx(0.1, rel=1e-9)


def go(recipe: Recipe, corpus: Corpus, out: Path, *, resume: bool, until: int = 99) -> Summary:
    """12 steps, of which 3 are cut after the seventh; interrupted after `until`."""
    with opened_run(recipe, corpus, RunFolder(out), View(), resume=resume) as run:

        def after_round() -> None:
            done = run.plan.last - run.steps_left
            if done == 7 and not run.plan.corrections:
                run.correct(9, "slow")
            if done == until:
                raise KeyboardInterrupt

        return train_in_turn([run], after_round)[0]


def without_times(out: Path) -> list[dict[str, object]]:
    log = read_journal(out / "log.jsonl")
    return [{k: v for k, v in row.items() if "second" not in k} for row in log]


def test_a_corrected_run_ends_there_and_goes_on_alike_after_a_kill(
    make_recipe, corpus: Corpus, tmp_path: Path
) -> None:
    recipe = make_recipe("train.checkpoint_every=3")
    whole = go(recipe, corpus, tmp_path / "whole", resume=False)
    log = without_times(tmp_path / "whole")
    assert (whole.steps, whole.interrupted, whole.tokens) == (9, False, 9 * 4 * 16)
    # Places 1 to 7, and then 9.5 and 12: the schedule's end, a tenth of the peak.
    expected = [recipe.train.learning_rate(place) for place in (1, 2, 3, 4, 5, 6, 7, 9.5, 12)]
    assert [row["lr"] for row in log] == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == pytest.approx(recipe.train.lr / 10, rel=1e-9)
    assert [row["step"] for row in read_journal(tmp_path / "whole" / "eval.jsonl")] == [6, 9]
    assert RecordedRun.read(tmp_path / "whole").steps == 9
    # Killed after step 8, with a checkpoint of step 6: the correction after step 7 is kept.
    with pytest.raises(KeyboardInterrupt):
        go(recipe, corpus, tmp_path / "killed", resume=False, until=8)
    newest = RunFolder(tmp_path / "killed").checkpoints().newest()
    assert newest is not None
    assert newest.name == "step-00000006"
    summary = go(recipe, corpus, tmp_path / "killed", resume=True)
    assert (summary.steps, summary.interrupted) == (9, False)
    assert without_times(tmp_path / "killed") == log
    assert summary.heldout_bits_per_byte == whole.heldout_bits_per_byte


def test_steps_that_are_given_anew_stand_in_place_of_corrected_ones(
    make_recipe, corpus: Corpus, cache: Path, tmp_path: Path
) -> None:
    go(make_recipe(), corpus, tmp_path / "run", resume=False)
    changed = ChangedKeys(("train.steps",))
    more = make_recipe("train.steps=14")
    with pytest.raises(CheckpointError, match=r"train\.steps"):
        train(more, tmp_path / "run", resume=True, cache=cache)
    summary = train(more, tmp_path / "run", resume=True, changed=changed, cache=cache)
    assert (summary.steps, summary.interrupted) == (14, False)
    assert RecordedRun.read(tmp_path / "run").steps == 14
    log = without_times(tmp_path / "run")
    expected = [more.train.learning_rate(step) for step in range(10, 15)]
    assert [row["lr"] for row in log][9:] == pytest.approx(expected, rel=1e-12)


DAMAGED = [
    "",
    "{",
    "[]",
    '{"corrections": [{"after": -1}]}',
    '{"corrections": [{"after": 2, "steps": 2, "reason": "no step is left"}]}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_corrections_are_named(
    make_recipe, corpus: Corpus, tmp_path: Path, content: str
) -> None:
    recipe = make_recipe("train.steps=3")
    with opened_run(recipe, corpus, RunFolder(tmp_path), View(), resume=False):
        pass
    (tmp_path / "steps.json").write_text(content)
    with (
        pytest.raises(CheckpointError, match=r"steps\.json"),
        opened_run(recipe, corpus, RunFolder(tmp_path), View(), resume=True),
    ):
        pass
