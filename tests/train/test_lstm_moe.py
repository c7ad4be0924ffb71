"""A run of an MoE between LSTMs: it trains, stops, goes on, is loaded and reported."""

from math import nan
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.loaded_run import load_run
from mixtura.config import Tree
from mixtura.data import Corpus, prepare
from mixtura.engine.generate import generate
from mixtura.engine.sampling import Sampling
from mixtura.errors import ConfigError, NonFiniteError
from mixtura.insight import Subject, report_data
from mixtura.models.historic import LstmMoE, LstmMoEConfig
from mixtura.runs import Recipe, RunFolder, load_recipe, read_journal
from mixtura.runs.checkpoint import read
from mixtura.train import build_trainer, train

MOE = {"num_experts": 4, "top_k": 2, "expert_width": 16, "router": {"kind": "noisy_topk"}}
MODEL = {"kind": "lstm_moe", "width": 16, "context": 32, "units": 24, "dropout": 0.1, "moe": MOE}


@pytest.fixture(scope="module")
def recipe(tree: Tree) -> Recipe:
    return Recipe.parse({**tree, "model": MODEL})


@pytest.fixture(scope="module")
def run(recipe: Recipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lstm")
    train(recipe, folder, cache=cache)
    return folder


def test_a_model_without_a_kind_is_a_decoder(tree: Tree) -> None:
    assert Recipe.parse(tree).model.kind == "decoder"
    assert Recipe.parse({**tree, "model": {**tree["model"], "kind": "decoder"}}) == (
        Recipe.parse(tree)
    )


def test_the_recipe_knows_the_kind(recipe: Recipe) -> None:
    assert isinstance(recipe.model, LstmMoEConfig)
    assert recipe.model.vocabulary == 257
    assert Recipe.parse(recipe.tree()) == recipe


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**MODEL, "kind": "rnn"}, ["model", "'rnn'", "'decoder', 'lstm_moe'"]),
        ({**MODEL, "layers": 2}, ["unknown key 'model.layers'", "known keys: context"]),
        ({**MODEL, "units": 3}, ["model: units=3", "width=16"]),
        ({**MODEL, "moe": {**MOE, "top_k": 9}}, ["model.moe: top_k=9", "num_experts=4"]),
        (3, ["model", "given 3"]),
    ],
)
def test_a_bad_model_is_named(tree: Tree, model: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        Recipe.parse({**tree, "model": model})
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_it_learns(tree: Tree, corpus: Corpus) -> None:
    longer = {**tree["train"], "steps": 60, "lr": 0.02}
    trainer = build_trainer(Recipe.parse({**tree, "model": MODEL, "train": longer}), corpus)
    assert trainer.moe_layers == [1]
    before = trainer.evaluate()
    reports = [trainer.step() for _ in range(60)]
    assert trainer.evaluate() < 0.75 * before
    assert reports[-1].losses.keys() == {"importance", "load"}
    # 4 * 16 tokens choose two experts.
    assert [sum(load_E) for load_E in reports[-1].load] == [128]


def test_a_restored_trainer_goes_on_bit_for_bit(recipe: Recipe, run: Path, corpus: Corpus) -> None:
    older = RunFolder(run).checkpoints().all()[0]
    state, _ = read(older)
    trainer = build_trainer(recipe, corpus)
    trainer.restore(state)
    reports = [trainer.step() for _ in range(3)]
    expected = read_journal(run / "log.jsonl")[-3:]
    assert [(r.step, r.loss, r.load) for r in reports] == [
        (row["step"], row["loss"], row["load"]) for row in expected
    ]


def test_a_loaded_run_gives_the_trained_model(recipe: Recipe, run: Path) -> None:
    assert load_recipe(run / "recipe.yaml") == recipe
    loaded = load_run(run)
    assert isinstance(loaded.decoder, LstmMoE)
    tokens_BS = torch.tensor([loaded.tokenizer.encode("1, 2, 3")])
    # The LSTMs compute with the weights that were loaded, not with those of the build.
    newest = RunFolder(run).checkpoints().newest()
    assert newest is not None
    twin = recipe.model.build().eval()
    twin.load_state_dict(read(newest)[0].model)
    assert loaded.decoder(tokens_BS).logits_BSV.equal(twin(tokens_BS).logits_BSV)


def test_generation_is_refused_by_name(run: Path) -> None:
    loaded = load_run(run)
    with pytest.raises(ConfigError, match=r"LstmMoE.*cannot generate; take a run whose model is"):
        generate(loaded.decoder, loaded.tokenizer, "1, 2", Sampling(), 4)


def test_the_report_shows_the_one_layer(run: Path, cache: Path) -> None:
    def opened(folder: Path) -> Subject:
        loaded = load_run(folder)
        return Subject(loaded.decoder, prepare(loaded.recipe.data, cache), loaded.step)

    data = report_data(run, None, opened)
    assert data["subtitle"].startswith(
        "an LSTM on either side of a layer of width 16 · 4 experts, 2 for each token"
    )
    assert [layer["layer"] for layer in data["load"]["layers"]] == [1]
    assert len(data["text"]["texts"][0]["layers"]) == 1


@pytest.mark.parametrize("module", ["embedding", "first", "moe.experts", "second", "head"])
def test_a_weight_that_is_not_finite_is_found(recipe: Recipe, corpus: Corpus, module: str) -> None:
    trainer = build_trainer(recipe, corpus)
    with torch.no_grad():
        for name, parameter in trainer.decoder.named_parameters():
            if name.startswith(f"{module}."):
                parameter.fill_(nan)
    with pytest.raises(NonFiniteError, match=rf"began in {module};"):
        trainer.step()


def test_a_gradient_that_is_not_finite_is_found(recipe: Recipe, corpus: Corpus) -> None:
    trainer = build_trainer(recipe, corpus)
    parameters = dict(trainer.decoder.named_parameters())
    for name in ("first.weight_ih_l0", "moe.experts.w_in"):
        parameters[name].register_hook(lambda grad: grad * nan)
    # Backwards, the experts come before the first LSTM.
    with pytest.raises(NonFiniteError, match=r"the gradient of moe\.experts\.w_in"):
        trainer.step()
