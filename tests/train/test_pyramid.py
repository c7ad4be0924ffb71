"""A decoder whose second layer has more experts: it trains, stops, goes on and is reported."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from mixtura.checkpoints.loaded_run import load_run
from mixtura.data import Corpus, prepare
from mixtura.insight import Subject, report_data, write_report
from mixtura.runs import Recipe, RunFolder, read_journal
from mixtura.runs.checkpoint import read
from mixtura.train import build_trainer, train

PYRAMID = "model.moe.pyramid=[{from_layer: 1, num_experts: 8}]"


@pytest.fixture(scope="module")
def recipe(make_recipe) -> Recipe:
    return make_recipe(PYRAMID)


@pytest.fixture(scope="module")
def run(recipe: Recipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyramid")
    train(recipe, folder, cache=cache)
    return folder


def test_each_layer_reports_its_own_experts(recipe: Recipe, corpus: Corpus) -> None:
    trainer = build_trainer(recipe, corpus)
    report = trainer.step()
    # 4 * 16 tokens choose 2 experts each, in a layer of 4 and in one of 8.
    assert [len(load_E) for load_E in report.load] == [4, 8]
    assert [sum(load_E) for load_E in report.load] == [128, 128]
    assert trainer.recent_load == report.load
    assert len(report.dropped) == len(report.max_over_mean) == 2


def test_what_a_run_writes(run: Path) -> None:
    log = read_journal(run / "log.jsonl")
    assert [[len(load_E) for load_E in row["load"]] for row in log] == [[4, 8]] * 12
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for layer, busiest in enumerate(summary["load_max_over_mean"]):
        sums = [sum(column) for column in zip(*(row["load"][layer] for row in log), strict=True)]
        assert busiest == max(sums) / (sum(sums) / len(sums))


def test_a_restored_trainer_goes_on_bit_for_bit(recipe: Recipe, run: Path, corpus: Corpus) -> None:
    # The older of the two checkpoints that stay is step 9; the run itself went on to 12.
    older = RunFolder(run).checkpoints().all()[0]
    state, _ = read(older)
    trainer = build_trainer(recipe, corpus)
    trainer.restore(state)
    reports = [trainer.step() for _ in range(3)]
    expected = read_journal(run / "log.jsonl")[-3:]
    assert [(r.step, r.loss, r.load) for r in reports] == [
        (row["step"], row["loss"], row["load"]) for row in expected
    ]


@pytest.mark.slow
def test_the_report_renders(run: Path, cache: Path, tmp_path: Path) -> None:
    def opened(folder: Path) -> Subject:
        loaded = load_run(folder)
        return Subject(loaded.decoder, prepare(loaded.recipe.data, cache), loaded.step)

    data = report_data(run, None, opened)
    assert "4 or 8 experts in each layer, 2 for each token" in data["subtitle"]
    assert [len(layer["relative"]) for layer in data["load"]["layers"]] == [4, 8]
    assert [len(layer["telling"]) for layer in data["domains"]["layers"]] == [4, 8]
    # Eight colours, and eight probabilities kept: of the first layer's experts four are no one.
    assert (data["text"]["experts"], data["text"]["kept"]) == (8, 8)
    text = data["text"]["texts"][0]["layers"][0]
    likely_TP = np.frombuffer(base64.b64decode(text["likely"]), "<i2").reshape(-1, 8)
    assert (np.sort(likely_TP[:, :4]) == range(4)).all()
    assert (likely_TP[:, 4:] == -1).all()
    page = write_report(run, tmp_path / "report.html", subject=opened)
    assert "--e7:" in page.read_text(encoding="utf-8")
