"""`mixtura train` and `mixtura report`, as a newcomer runs them."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from mixtura.checkpoints.loaded_run import load_run

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def test_train_says_what_came_out(inside: Mixtura, tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=6", "train.warmup=2", "name=short"]
    done = inside("train", tiny_recipe, *(f"--set={one}" for one in overrides))
    assert done.returncode == 0, done.stderr
    # 6 steps of 8 sequences of 32 tokens; without --out a run goes where its name says.
    assert re.fullmatch(
        r"runs/short: 6 steps, 1,536 tokens, held-out \d\.\d{4} bits per byte\n"
        r'next: mixtura generate runs/short --prompt "..."; mixtura report runs/short\n',
        done.stdout,
    )
    assert load_run(tmp_path / "runs" / "short").step == 6


def test_ctrl_c_saves_and_says_how_to_go_on(
    start: Start, inside: Mixtura, tiny_recipe: Path, tmp_path: Path
) -> None:
    arguments = ["train", tiny_recipe, "--out", "run", "--set", "train.steps=60", "--json"]
    process = start(*arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    while "step 5/60" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    remarks, (stopped,) = process.stderr.read(), process.stdout.read().splitlines()
    assert process.wait(timeout=60) == 130
    saved = load_run(tmp_path / "run").step
    assert 5 <= saved < 60
    assert remarks.endswith(f"stopped after step {saved}, saved; go on with --resume\n")
    assert json.loads(stopped)["interrupted"] is True
    resumed = inside(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {saved}" in resumed.stderr
    summary = json.loads(resumed.stdout)
    # 60 steps of 8 sequences of 32 tokens.
    assert (summary["folder"], summary["interrupted"]) == ("run", False)
    assert (summary["steps"], summary["tokens"]) == (60, 15_360)


def test_a_run_goes_on_with_more_steps_and_begins_another(
    inside: Mixtura, tiny_recipe: Path, tmp_path: Path
) -> None:
    arguments = ["--set=train.steps=4", "--set=train.warmup=2"]
    assert inside("train", tiny_recipe, "--out", "run", *arguments).returncode == 0
    more = inside(
        "train", tiny_recipe, "--out", "run", arguments[1], "--set=train.steps=6", "--resume"
    )
    assert more.returncode == 0, more.stderr
    assert "train.steps: 4 -> 6, from step 5" in more.stderr
    now = [arguments[1], "--set=train.steps=6"]
    wider = inside("train", tiny_recipe, "--out", "run", *now, "--resume", "--set=train.batch=2")
    assert wider.returncode == 2
    assert "train.batch is 8 there and 2 here" in wider.stderr
    begun = inside("train", tiny_recipe, "--from", "run", "--out", "second", *arguments, "--json")
    assert begun.returncode == 0, begun.stderr
    assert json.loads(begun.stdout)["steps"] == 4
    origin = json.loads((tmp_path / "second" / "origin.json").read_text())
    assert (origin["model"], origin["step"]) == ("run", 6)
    missing = inside("train", tiny_recipe, "--from", "nowhere", "--out", "third")
    assert (missing.returncode, (tmp_path / "third").exists()) == (2, False)
    assert "nowhere" in missing.stderr


def test_report_says_where_the_page_is(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> None:
    done = inside("report", tiny_run, "--out", "page.html", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"report": "page.html"}
    assert (tmp_path / "page.html").read_text(encoding="utf-8").lstrip().startswith("<!")
