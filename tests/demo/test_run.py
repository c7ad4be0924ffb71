"""The real demo, made small."""

import json

import pytest

from mixtura.cli.app import run
from mixtura.demo import free_folder

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
