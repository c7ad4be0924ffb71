"""The sweep runner on real runs of a few steps, stopped and gone on with; and recorded results."""

import importlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixtura.runs import load_recipe

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SWEEPS = [
    name
    for name in ("balance_ablation", "capacity_policies", "capacity_without_cost", "granularity")
    if (EXPERIMENTS / "results" / f"{name}.json").exists()
]


@pytest.fixture(autouse=True)
def _scripts_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)


@pytest.fixture
def runner() -> ModuleType:
    return importlib.import_module("sweep")


@pytest.fixture
def variants(runner: ModuleType, tiny_recipe: Path) -> list[Any]:
    """Two variants, one seed, four steps of 4 sequences of 32 bytes."""
    steps = ["train.steps=4", "train.batch=4"]
    dropless = load_recipe(tiny_recipe, steps)
    drop = load_recipe(
        tiny_recipe, [*steps, "model.moe.capacity={policy: drop, factor: 0.5, scope: group}"]
    )
    return [runner.Variant("dropless", dropless, (7,)), runner.Variant("half", drop, (7,))]


def press_ctrl_c_once_there_is(path: Path) -> threading.Thread:
    def watch() -> None:
        while not path.exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    return watcher


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_where_it_stood(
    tmp_path: Path,
    runner: ModuleType,
    variants: list[Any],
    tiny_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MIXTURA_CACHE", str(tiny_cache))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    first, second = tmp_path / "dropless-seed7.json", tmp_path / "half-seed7.json"
    watcher = press_ctrl_c_once_there_is(first)
    with pytest.raises(SystemExit, match=r"stopped; finished runs are in .* call again to go on"):
        runner.sweep(variants, tmp_path)
    watcher.join()
    assert list(tmp_path.iterdir()) == [first]
    kept = first.stat().st_mtime_ns
    # Of another recipe, so not this run's.
    second.write_text('{"recipe": {"name": "another"}, "measures": {}}', encoding="utf-8")
    capfd.readouterr()

    dropless, half = runner.sweep(variants, tmp_path)

    said = capfd.readouterr().err
    assert "run 2/2: half, seed 7" in said
    assert "run 1/2" not in said
    assert "half-seed7.json is of another recipe and is run again" in said
    assert first.stat().st_mtime_ns == kept
    assert [(row.name, row.seed) for row in (dropless, half)] == [("dropless", 7), ("half", 7)]
    check_measures(dropless.measures, half.measures)


def check_measures(dropless: dict[str, Any], half: dict[str, Any]) -> None:
    # 4 steps * 4 sequences * 32 bytes.
    assert dropless["tokens"] == 512
    assert dropless["heldout_bits_per_byte"] == dropless["heldout_bits_per_byte_dropless"]
    assert dropless["last_steps"]["dropped_share"] == [0.0, 0.0]
    # A batch asks for 4 * 32 * 2 rows, and four experts with ceil(0.5 * 256 / 4) rows each compute
    # at most half of them.
    assert all(0.5 <= share < 1 for share in half["last_steps"]["dropped_share"])
    assert half["heldout_bits_per_byte"] != half["heldout_bits_per_byte_dropless"]
    # AdamW keeps two moments of each weight, 4 bytes each, and counts steps besides.
    total = dropless["total_parameters"]
    assert 12 * total < dropless["weights_and_optimizer_bytes"] < 12 * total + 1000
    assert dropless["peak_rss_bytes"] > dropless["weights_and_optimizer_bytes"]


def test_a_claim_holds_only_beyond_the_spread(runner: ModuleType) -> None:
    lower = importlib.import_module("findings").lower
    # a: 1.0, 1.1, 1.2, spread 0.2. b lies 0.3 above it, which is more; c lies 0.1 above it.
    rows = [
        runner.Row(name, seed, {"x": 1 + seed / 10 + above})
        for name, above in (("a", 0), ("b", 0.3), ("c", 0.1))
        for seed in range(3)
    ]
    assert lower(rows, "a", "b", "x")["holds"]
    assert not lower(rows, "a", "c", "x")["holds"]
    assert not lower(rows, "b", "a", "x")["holds"]
    # Two seeds of a.
    assert lower(rows[1:], "a", "b", "x") is None


def test_settings_name_what_a_variant_changes(runner: ModuleType, variants: list[Any]) -> None:
    assert runner.settings(variants)["differences"] == {
        "half": {
            "model.moe.capacity.policy": "drop",
            "model.moe.capacity.factor": 0.5,
            "model.moe.capacity.scope": "group",
        }
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_recorded_claims_are_what_the_recorded_rows_say(name: str, runner: ModuleType) -> None:
    result = json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text("utf-8"))
    rows = [runner.Row(row["name"], row["seed"], row) for row in result["rows"]]
    assert len({(row.name, row.seed) for row in rows}) == len(rows)
    assert result["claims"] == importlib.import_module(name).claims(rows)
    assert result["command"] == f"python experiments/{name}.py"


@pytest.mark.parametrize("name", SWEEPS)
def test_recorded_settings_are_the_script_s(name: str, runner: ModuleType) -> None:
    result = json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text("utf-8"))
    options = runner.Options(runner.LAPTOP, (), (0, 1, 2), (), Path(), Path())
    variants = importlib.import_module(name).variants(options)
    told = {(variant.name, seed) for variant in variants for seed in variant.seeds}
    assert told == {(row["name"], row["seed"]) for row in result["rows"]}
    assert result["differences"] == runner.settings(variants)["differences"]
