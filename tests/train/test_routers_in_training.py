"""Routers that learn, or know, more than a gradient says; a tiny decoder on a few kB of text."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mixtura.data import Corpus
from mixtura.errors import ConfigError
from mixtura.moe import balanced_table, moe_layers
from mixtura.runs import RunFolder, read_journal
from mixtura.runs.recipe import differences
from mixtura.train import TrainingRun, View, build_trainer, train, train_in_turn

ROUTERS = {
    "expert_threshold": ("model.moe.router={kind: expert_threshold}",),
    "expert_choice": ("model.moe.router={kind: expert_choice, accept_leak: true}",),
    "batchwise": ("model.moe.router={kind: batchwise, accept_leak: true}",),
    "base": ("model.moe.router={kind: base, accept_leak: true}", "model.moe.top_k=1"),
    "sinkhorn": ("model.moe.router={kind: sinkhorn, accept_leak: true}",),
    "hash": ("model.moe.router={kind: hash}",),
    "balanced hash": ("model.moe.router={kind: hash, table: balanced}",),
    "reinforce": ("model.moe.router={kind: reinforce}", "model.moe.top_k=1"),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_it_learns(make_recipe, corpus: Corpus, name: str) -> None:
    overrides = ("train.steps=30", "train.lr=0.02", "train.accumulation=2")
    trainer = build_trainer(make_recipe(*ROUTERS[name], *overrides), corpus)
    before = trainer.evaluate()
    for _ in range(30):
        trainer.step()
    assert trainer.evaluate() < 0.8 * before


@pytest.mark.parametrize("kind", ["base", "sinkhorn", "batchwise"])
def test_one_that_looks_ahead_in_training_is_refused_and_still_opens(
    make_recipe, corpus: Corpus, cache: Path, tmp_path: Path, kind: str
) -> None:
    top_k = f"model.moe.top_k={1 if kind == 'base' else 2}"
    recipe = make_recipe(f"model.moe.router={{kind: {kind}}}", top_k)
    words = rf"kind={kind} chooses by later tokens too in training.*accept_leak=true"
    with pytest.raises(ConfigError, match=words):
        build_trainer(recipe, corpus)
    with pytest.raises(ConfigError, match=words):
        train(recipe, tmp_path / "run", cache=cache)
    assert not (tmp_path / "run").exists()
    # In evaluation it is causal: the model of a run is built, read and generated from.
    assert recipe.model.build().eval()(torch.tensor([[1, 2, 3]])).logits_BSV.isfinite().all()
    # A run of before the option was there goes on once the option is given.
    accepting = make_recipe(f"model.moe.router={{kind: {kind}, accept_leak: true}}", top_k)
    assert not list(differences(accepting, recipe))
    build_trainer(accepting, corpus)


def test_a_batchwise_gate_that_trains_by_its_threshold_looks_at_no_later_token(
    make_recipe, corpus: Corpus
) -> None:
    build_trainer(make_recipe("model.moe.router={kind: batchwise, mask: threshold}"), corpus)


def test_a_policy_is_trained_and_reported(make_recipe, corpus: Corpus) -> None:
    trainer = build_trainer(make_recipe(*ROUTERS["reinforce"]), corpus)
    gates = [layer.router.get_parameter("weight") for layer in moe_layers(trainer.decoder)]
    without = [gate.detach().clone() for gate in gates]
    report = trainer.step()
    assert set(report.losses) == {"balance", "z", "policy"}
    baseline = moe_layers(trainer.decoder)[0].router.get_parameter("baseline_weight")
    assert baseline.any()
    assert all((gate != old).any() for gate, old in zip(gates, without, strict=True))


def test_thresholds_are_of_the_checkpoint(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe(*ROUTERS["expert_threshold"])
    trainer = build_trainer(recipe, corpus)
    for _ in range(3):
        trainer.step()
    resumed = build_trainer(recipe, corpus)
    resumed.restore(copy.deepcopy(trainer.state()))
    router = moe_layers(resumed.decoder)[0].router
    assert router.get_buffer("steps_seen").item() == 3
    assert [resumed.step().loss for _ in range(2)] == [trainer.step().loss for _ in range(2)]


def test_a_run_goes_on_where_no_token_passes_a_threshold(
    make_recipe, corpus: Corpus, tmp_path: Path
) -> None:
    recipe = make_recipe(*ROUTERS["expert_threshold"], "train.steps=2")
    trainer = build_trainer(recipe, corpus)
    for layer in moe_layers(trainer.decoder):
        # No probability is above 1. What the first step sees takes the threshold's place after it.
        layer.router.get_buffer("threshold_E").fill_(2.0)
    folder = RunFolder(tmp_path / "run")
    with folder.claimed():
        folder.create(recipe, corpus)
        with TrainingRun(trainer, recipe, corpus.digest, folder, View()) as run:
            (summary,) = train_in_turn([run])
    first, second = read_journal(folder.log)
    assert first["load"] == [[0] * 4, [0] * 4]
    assert first["max_over_mean"] == [1.0, 1.0]
    assert min(map(sum, second["load"])) > 0
    assert not summary.interrupted


def test_a_balanced_hash_knows_the_corpus(make_recipe, corpus: Corpus) -> None:
    recipe = make_recipe(*ROUTERS["balanced hash"])
    trainer = build_trainer(recipe, corpus)
    counts = np.bincount(corpus.train.tokens, minlength=recipe.model.vocabulary)
    expected = balanced_table(torch.from_numpy(counts), 4, 0, 2)
    for layer in moe_layers(trainer.decoder):
        assert torch.equal(layer.router.get_buffer("table_VK"), expected)
    # Over the whole corpus no expert has a tenth more than its share, though e and space abound.
    load_E = torch.zeros(4, dtype=torch.int64)
    load_E.index_add_(0, expected.flatten(), torch.from_numpy(counts).repeat_interleave(2))
    assert load_E.max() < 1.1 * load_E.double().mean()
