"""What a report says about real runs, against their files and their weights."""

import base64
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mixtura.checkpoints.loaded_run import load_run
from mixtura.config import read_yaml
from mixtura.data import DataConfig, prepare
from mixtura.errors import CheckpointError, DataError, UnexpectedError
from mixtura.insight import Subject, report_data, write_report
from mixtura.runs import read_journal

Open = Callable[[Path], Subject]
Tree = dict[str, Any]


def test_what_no_reader_sees_is_one_line_about_the_run(moe_run: Path, tmp_path: Path) -> None:
    def damaged(run: Path) -> Subject:
        raise KeyError(run.name)

    with pytest.raises(UnexpectedError, match=f"^{moe_run}: cannot be read"):
        write_report(moe_run, tmp_path / "report.html", subject=damaged)
    assert not (tmp_path / "report.html").exists()


def refuse(run: Path) -> Subject:
    raise AssertionError(f"{run}: a dense run needs no checkpoint")


def array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope="module")
def data(pair: Path, open_subject: Open) -> Tree:
    return report_data(pair / "moe", None, open_subject)


def test_counts_are_those_of_the_weights(data: Tree, pair: Path) -> None:
    for shown, folder in zip(data["runs"], ("moe", "dense"), strict=True):
        decoder = load_run(pair / folder).decoder
        assert shown["total"] == sum(weight.numel() for weight in decoder.parameters())
    moe, dense = data["runs"]
    # Of four experts a token uses two: half of 3 * 32 * 16 weights in each of 4 experts, 2 layers.
    assert moe["total"] - moe["active"] == 2 * 2 * 3 * 32 * 16
    assert dense["total"] == dense["active"]


def test_bits_per_byte_are_the_last_of_each_log(data: Tree, pair: Path) -> None:
    last = [
        read_journal(pair / name / "eval.jsonl")[-1]["heldout_bits_per_byte"]
        for name in ("moe", "dense")
    ]
    assert [run["bits"] for run in data["runs"]] == last
    # 40 steps of 8 * 32 tokens.
    assert data["comparison"]["tokens"] == 40 * 8 * 32
    assert [data["comparison"]["run"], data["comparison"]["twin"]] == last


def test_curves_are_the_log(data: Tree, pair: Path) -> None:
    log = read_journal(pair / "moe" / "log.jsonl")
    curve = data["runs"][0]["curve"]
    assert curve["tokens"] == [row["tokens"] for row in log]
    assert curve["loss"] == [pytest.approx(row["loss"], abs=1e-4) for row in log]
    speeds = sorted(row["tokens_per_second"] for row in log)
    # Eight lines: the median lies between the fourth and the fifth.
    assert data["runs"][0]["speed"] == pytest.approx((speeds[3] + speeds[4]) / 2)


def test_load_is_the_logs(data: Tree, pair: Path) -> None:
    log = read_journal(pair / "moe" / "log.jsonl")
    summary = json.loads((pair / "moe" / "summary.json").read_text())
    assert [layer["layer"] for layer in data["load"]["layers"]] == [0, 1]
    for row, layer in enumerate(data["load"]["layers"]):
        assert layer["recent"] == summary["load_max_over_mean"][row]
        load_E = np.array(log[-1]["load"][row])
        shown = [relative[-1] for relative in layer["relative"]]
        np.testing.assert_allclose(shown, load_E / load_E.mean(), atol=1e-3)
        assert layer["max"][-1] == pytest.approx(load_E.max() / load_E.mean(), abs=1e-3)
    assert data["load"]["top"] > max(max(layer["max"]) for layer in data["load"]["layers"])


def test_tokens_have_the_routers_choices(data: Tree, pair: Path, open_subject: Open) -> None:
    subject = open_subject(pair / "moe")
    text = data["text"]["texts"][0]
    # The first window is of 32 tokens, and no document ends in it.
    assert min(text["ended"]) >= 32
    tokens = subject.corpus.tokenizer.encode("".join(text["pieces"]))
    with torch.inference_mode():
        output = subject.decoder(torch.tensor([tokens[:32]]))
    for packed, moe in zip(text["layers"], output.moe, strict=True):
        routing = moe.routing
        chosen = array(packed["chosen"], "<i2")[: 32 * 2]
        np.testing.assert_array_equal(chosen, routing.chosen_N)
        weight = array(packed["weight"], "<f4")[: 32 * 2]
        np.testing.assert_allclose(weight, routing.weight_N, rtol=1e-4)
        # Four experts are few enough to keep them all.
        likely = array(packed["likely"], "<i2").reshape(-1, 4)[:32]
        probs = array(packed["probs"], "<u2").reshape(-1, 4)[:32] / 65535
        assert routing.probs_TE is not None
        expected = np.take_along_axis(routing.probs_TE.numpy(), likely.astype(np.int64), 1)
        np.testing.assert_allclose(probs, expected, atol=1e-4)


def test_bits_of_tokens_and_the_first(data: Tree) -> None:
    bits = data["text"]["texts"][0]["bits"]
    assert bits[0] is None
    assert all(math.isfinite(value) and value >= 0 for value in bits[1:])


def test_domains_count_each_token_once(data: Tree) -> None:
    domains = data["domains"]
    assert sorted(domains["names"]) == ["counting", "sums"]
    for layer in domains["layers"]:
        assert np.sum(layer["counts"], 1).tolist() == domains["tokens"]
        assert 0 <= layer["information"] <= domains["entropy"]
        assert len(layer["telling"]) == 4


def test_the_twin_is_found_beside_the_run_and_named(data: Tree, pair: Path) -> None:
    assert [run["label"] for run in data["runs"]] == ["MoE", "dense twin"]
    given = report_data(pair / "dense", None, refuse)
    assert [run["label"] for run in given["runs"]] == ["dense"]


def test_a_dense_run_has_curves_alone(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "dense", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    data = report_data(tmp_path / "run", None, refuse)
    assert data["text"] is data["domains"] is data["load"] is data["comparison"] is None
    assert "dense" in data["subtitle"]
    assert write_report(tmp_path / "run", tmp_path / "a.html", subject=refuse).is_file()


def test_an_moe_without_a_twin(tiny_run: Path, open_subject: Open) -> None:
    data = report_data(tiny_run, None, open_subject)
    assert data["comparison"] is None
    assert len(data["runs"]) == 1


def test_a_run_in_progress(moe_run: Path, open_subject: Open) -> None:
    """One line, and another that is being written; no evaluation; a checkpoint."""
    log = moe_run / "log.jsonl"
    first, second, *_ = log.read_text().splitlines(keepends=True)
    log.write_text(first + second[:-9])
    (moe_run / "eval.jsonl").unlink()
    (moe_run / "summary.json").unlink()
    data = report_data(moe_run, None, open_subject)
    assert "5 of 40 steps" in data["subtitle"]
    assert data["runs"][0]["bits"] is None
    assert data["load"]["last"] == [5]
    assert data["load"]["recent"] == "last 5 steps, as logged"
    load_E = np.array(json.loads(first)["load"][1])
    assert data["load"]["layers"][1]["recent"] == pytest.approx(load_E.max() / load_E.mean())


def test_the_log_of_another_run_is_refused(moe_run: Path, open_subject: Open) -> None:
    (moe_run / "log.jsonl").write_text('{"step": 1, "tokens": 1, "load": [[1, 1]]}\n')
    with pytest.raises(DataError, match="has the load of 1 MoE layers, and the recipe has 2"):
        report_data(moe_run, None, open_subject)


def test_progress_ends_when_all_is_read(tiny_run: Path, open_subject: Open) -> None:
    told: list[tuple[str, int, int]] = []
    report_data(tiny_run, None, open_subject, lambda *call: told.append(call))
    assert told[-1][0] == "reading"
    assert told[-1][1] == told[-1][2] > 0


def test_a_run_that_has_not_logged_yet(moe_run: Path, open_subject: Open) -> None:
    for name in ("log.jsonl", "eval.jsonl", "summary.json"):
        (moe_run / name).unlink()
    data = report_data(moe_run, None, open_subject)
    assert data["load"] is None
    assert data["runs"][0]["curve"]["loss"] == []


def test_two_runs_are_compared_where_both_have_been(
    pair: Path, tmp_path: Path, open_subject: Open
) -> None:
    shutil.copytree(pair, tmp_path / "pair")
    twin = tmp_path / "pair" / "dense" / "eval.jsonl"
    early, _ = read_journal(twin)
    twin.write_text(json.dumps(early) + "\n")
    data = report_data(tmp_path / "pair" / "moe", None, open_subject)
    assert data["comparison"]["tokens"] == early["tokens"]
    assert data["comparison"]["twin"] == early["heldout_bits_per_byte"]


def test_a_run_without_a_checkpoint_is_refused(
    moe_run: Path, tmp_path: Path, open_subject: Open
) -> None:
    shutil.rmtree(moe_run / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        write_report(moe_run, tmp_path / "a.html", subject=open_subject)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("recipe", [None, "name: x\n", "[]\n"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, recipe: str | None) -> None:
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(CheckpointError, match=r"recipe\.yaml"):
        write_report(tmp_path, tmp_path / "a.html", subject=refuse)


def test_a_twin_on_other_text_is_refused(pair: Path, tmp_path: Path, open_subject: Open) -> None:
    shutil.copytree(pair / "dense", tmp_path / "dense")
    corpus = tmp_path / "dense" / "corpus.json"
    corpus.write_text(json.dumps({**json.loads(corpus.read_text()), "digest": "other"}))
    with pytest.raises(DataError, match="other text"):
        report_data(pair / "moe", tmp_path / "dense", open_subject)
    # One that merely stands beside the run is passed over.
    shutil.copytree(pair / "moe", tmp_path / "moe")
    assert len(report_data(tmp_path / "moe", None, open_subject)["runs"]) == 1


def test_hostile_names_and_text_stay_text(
    moe_run: Path, tmp_path: Path, open_subject: Open
) -> None:
    hostile = "</script><script>window.hacked = 1</script>"
    recipe = read_yaml(moe_run / "recipe.yaml")
    (moe_run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "name": hostile}))
    folder = tmp_path / "text" / "<b>"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{number} é {hostile}\n" * 20, encoding="utf-8")
    source = {"kind": "text", "paths": [str(tmp_path / "text")]}
    corpus = prepare(DataConfig.parse({"source": source, "heldout": 0.4}), tmp_path / "cache")
    subject = Subject(open_subject(moe_run).decoder, corpus, 40)
    page = write_report(moe_run, tmp_path / "a.html", subject=lambda _: subject)
    text = page.read_text(encoding="utf-8")
    assert "<script>window.hacked" not in text
    assert text.count("window.hacked") >= 1
    data = report_data(moe_run, None, lambda _: subject)
    assert data["name"] == hostile
    assert any(hostile in "".join(one["pieces"]) for one in data["text"]["texts"])
    # This text is not what the run was trained on, and the page says so.
    assert "corpus has changed" in data["text"]["lead"]
