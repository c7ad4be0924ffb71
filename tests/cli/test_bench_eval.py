"""`mixtura bench eval`: its table, its JSON, its file, and what it refuses."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mixtura.bench

Mixtura = Callable[..., subprocess.CompletedProcess[str]]


def test_the_offline_tasks_print_a_table_and_the_same_as_data(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    # The tiny model has a context of 64 bytes, so a copy of 120 is too long for it.
    tasks = ("--tasks", "mixtura_cloze,mixtura_recall", "--limit", "12")
    done = inside("bench", "eval", tiny_run, *tasks, "--out", "found.json", "--json")
    assert done.returncode == 0, done.stderr
    header, *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert header.split() == ["task", "metric", "value", "error", "questions"]
    assert [line.split()[0] for line in table] == ["mixtura_cloze", "mixtura_recall"]
    assert json.loads((tmp_path / "found.json").read_text()) == found
    for row, line in zip(found["rows"], table, strict=True):
        # A share of 12 questions; its standard error by the spread of right and wrong.
        share = row["value"]
        assert share * 12 == pytest.approx(round(share * 12))
        assert row["error"] == pytest.approx(math.sqrt(share * (1 - share) / 11))
        assert f"{share:.4f}" in line
    assert (found["limit"], len(found["digest"])) == (12, 64)
    assert set(found["versions"]) == {"mixtura", "torch", "python"}
    assert "tiny, step 40, weights" in done.stderr
    again = inside("bench", "eval", tiny_run, *tasks, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["rows"] == found["rows"]


def test_it_refuses_in_one_line(
    inside: Mixtura, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.json").touch()
    # As where the extra is not installed.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mixtura.bench.harness", raising=False)
    monkeypatch.delattr(mixtura.bench, "harness", raising=False)
    for options, problem in (
        (("--tasks", "hellaswag"), "no task 'hellaswag' among mixtura, mixtura_cloze, "),
        (("--tasks", "hellaswag"), "pip install 'mixtura[eval]'"),
        (("--tasks", ","), "no task is named"),
        (("--tasks", "mixtura_copy"), "must leave one token of the model's 64"),
        (("--out", "there.json"), "there.json: already exists"),
        (("--together", "0"), "0 must be 1 or more"),
    ):
        done = inside("bench", "eval", tiny_run, *options)
        assert (done.returncode, done.stdout) == (2, ""), options
        assert problem in done.stderr.splitlines()[-1]
