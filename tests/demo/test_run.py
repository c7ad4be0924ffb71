"""The real demo, made small."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.cli.app import run
from mixtura.demo import free_folder, run_demo
from mixtura.demo.recipes import twin_recipes
from mixtura.demo.run import LIMIT_SECONDS
from mixtura.runs import RunFolder, read_journal
from mixtura.train import StepReport, View

SMALL = [
    "data.source.limit_mb=0.3",
    "moe.width=16",
    "moe.layers=2",
    "moe.attention.heads=2",
    "moe.attention.kv_heads=2",
    "moe.attention.head_dim=8",
    "moe.moe.num_experts=4",
    "moe.moe.expert_width=16",
    "moe.context=64",
    "train.length=64",
    "train.batch=4",
]


def demo(folder, *more):
    overrides = [part for override in SMALL for part in ("--set", override)]
    return run(["demo", "--out", str(folder), "--json", *more, *overrides])


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MIXTURA_CACHE", str(tmp_path_factory.getbasetemp() / "demo-cache"))


def test_the_demo_ends_with_one_object(tmp_path, capsys):
    assert demo(tmp_path / "demo", "--steps", "12") == 0
    found = last_line(capsys)
    both = {
        "total_parameters",
        "active_parameters",
        "flops_per_token",
        "tokens_per_second",
        "heldout_bits_per_byte",
    }
    assert both <= found["dense"].keys()
    assert both | {"load_max_over_mean", "seconds_to_dense_loss"} <= found["moe"].keys()
    assert len(found["moe"]["load_max_over_mean"]) == 2
    # 12 steps of 4 sequences of 64.
    assert found["tokens"] == 12 * 4 * 64
    assert found["sample"].startswith("def ")
    page = (tmp_path / "demo" / "report.html").read_text()
    assert found["report"] == str(tmp_path / "demo" / "report.html")
    assert "dense twin" in page
    # The twins are ordinary runs: the same folder again is refused, and left as it is.
    assert demo(tmp_path / "demo", "--steps", "12") == 2
    assert "already holds" in capsys.readouterr().err


def test_steps_that_fit_are_found_and_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mixtura.demo.run.BUDGET_SECONDS", 0.0)
    monkeypatch.setattr("mixtura.demo.run.FEWEST_STEPS", 5)
    assert demo(tmp_path / "demo") == 0
    captured = capsys.readouterr()
    assert "training for 5 steps" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["steps"] == 5


class Recorder(View):
    """Keeps the sentences, and acts after a step."""

    def __init__(self, act_at: int = 0, act: Callable[[], object] = int) -> None:
        self.lines: list[str] = []
        self._act_at, self._act = act_at, act

    def stepped(self, report: StepReport, *, logged: bool) -> None:
        if report.step == self._act_at:
            self._act()

    def log(self, line: str) -> None:
        self.lines.append(line)


def late_at_once() -> Callable[[], float]:
    """A clock that shows 0 at the start, and at every later look that time is up."""
    looks = iter([0.0])
    return lambda: next(looks, LIMIT_SECONDS)


def rates(run: Path) -> dict[int, float]:
    return {row["step"]: row["lr"] for row in read_journal(run / "log.jsonl")}


def test_a_demo_without_time_left_ends_soon_and_says_what_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("mixtura.demo.run.FEWEST_STEPS", 40)
    monkeypatch.setattr("mixtura.demo.run.BUDGET_SECONDS", 0.0)
    outcome = run_demo(tmp_path, view=Recorder(), overrides=SMALL, clock=late_at_once())
    assert outcome is not None
    # Of 40 steps the first 10 are taken before the first look; 10 are left to end the schedule in.
    assert (outcome.steps_planned, outcome.steps, outcome.tokens) == (40, 20, 20 * 4 * 64)
    assert outcome.cut is not None
    assert outcome.cut.startswith("20 of 40 steps were cut, to end within six minutes: ")
    assert outcome.tree()["steps_planned"] == 40
    for name in ("moe", "dense"):
        log = read_journal(tmp_path / name / "log.jsonl")
        assert (log[-1]["step"], log[-1]["tokens"]) == (20, 20 * 4 * 64)
        recipe = RunFolder(tmp_path / name).recorded()
        assert recipe is not None
        assert recipe.train.steps == 40
        # The cosine's end: a tenth of the peak.
        assert rates(tmp_path / name)[20] == pytest.approx(recipe.train.lr / 10)
    assert "20 steps done" in (tmp_path / "report.html").read_text()


def test_a_resumed_demo_keeps_its_corrected_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("mixtura.demo.run.FEWEST_STEPS", 40)
    monkeypatch.setattr("mixtura.demo.run.BUDGET_SECONDS", 0.0)
    view = Recorder(12, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run_demo(tmp_path, view=view, overrides=SMALL, clock=late_at_once()) is None
    # As if killed before the second folder was written.
    (tmp_path / "dense" / "steps.json").unlink()
    outcome = run_demo(tmp_path, view=Recorder(), resume=True)
    assert outcome is not None
    assert (outcome.steps_planned, outcome.steps) == (40, 20)
    assert outcome.cut is not None
    assert (tmp_path / "dense" / "steps.json").exists()
    moe, dense = rates(tmp_path / "moe"), rates(tmp_path / "dense")
    recipes = twin_recipes(40, tuple(SMALL))
    share = recipes["moe"].train.lr / recipes["dense"].train.lr
    assert {step: rate * share for step, rate in dense.items()} == pytest.approx(moe)


def test_the_last_line_says_how_many_steps_were_cut_and_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mixtura.demo.run.FEWEST_STEPS", 40)
    monkeypatch.setattr("mixtura.demo.run.BUDGET_SECONDS", 0.0)
    monkeypatch.setattr("mixtura.demo.run.LIMIT_SECONDS", 0.0)
    overrides = [part for override in SMALL for part in ("--set", override)]
    assert run(["demo", "--out", str(tmp_path / "demo"), *overrides]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"20 of 40 steps were cut, to end within six minutes: \w+", last)


def test_a_number_of_steps_that_was_asked_for_is_kept(tmp_path):
    outcome = run_demo(tmp_path, view=Recorder(), steps=24, overrides=SMALL, clock=late_at_once())
    assert outcome is not None
    assert (outcome.steps, outcome.steps_planned, outcome.cut) == (24, 24, None)


def test_resume_needs_a_demo_and_its_folder(tmp_path, capsys):
    assert run(["demo", "--resume"]) == 2
    assert "--out" in capsys.readouterr().err
    assert demo(tmp_path / "nothing", "--resume") == 2
    assert "no demo to resume" in capsys.readouterr().err


def test_free_folder(tmp_path):
    assert free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_folder(tmp_path / "demo") == tmp_path / "demo-3"
