from pathlib import Path

import pytest
import torch

from mixtura.config import Tree, with_overrides
from mixtura.data import Corpus
from mixtura.errors import ConfigError
from mixtura.runs import Recipe, load_recipe
from mixtura.runs.recipe import differences
from mixtura.train import build_trainer, choose_device

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_good(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem


def test_vocabulary_comes_from_the_tokenizer(make_recipe) -> None:
    # 256 bytes and the end of a document; or as many as BPE is asked for.
    assert make_recipe().model.vocabulary == 257
    assert make_recipe("data.tokenizer={kind: bpe, vocabulary: 300}").model.vocabulary == 300
    assert make_recipe("model.vocabulary=320").model.vocabulary == 320


def test_vocabulary_comes_from_a_tokenizer_in_a_file(make_recipe, tmp_path: Path) -> None:
    from mixtura.tokenizers import BpeConfig

    # One word has too few pairs for 300 tokens; the file has what it has.
    tokenizer = BpeConfig(kind="bpe", vocabulary=300).build(lambda _: ["expert"])
    tokenizer.save(tmp_path)
    recipe = make_recipe(f"data.tokenizer={{kind: file, path: {tmp_path}}}")
    assert recipe.model.vocabulary == tokenizer.vocabulary < 300


def test_yaml_gives_the_same_recipe_back(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe("train.lr=3e-4", "train.schedule={kind: wsd}")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe != make_recipe()


def test_overrides(make_recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(make_recipe().to_yaml(), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["train.lr=3e-4", "model.moe.top_k=1",
                                                    "model.moe.router={kind: switch}"])  # fmt: skip
    assert recipe.train.lr == 3e-4
    assert recipe.model.moe is not None
    assert recipe.model.moe.top_k == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stps=5", "unknown key 'train.stps'; did you mean 'steps'?"),
        ("model.moe.top_k=9", "top_k=9 must lie in 1..num_experts=4"),
        ("model.moe.capacity={policy: drop, factor: 0}", "greater than 0 .given 0."),
        ("train.length=33", "train.length=33 is longer than the model's context=32; lower"),
        ("train.dtype=float17", "'float32' or 'bfloat16' .given 'float17'."),
        ("train.warmup=13", "warmup=13 must lie in 0..steps=12; lower warmup"),
        ("train.betas=[0.9, 1.0]", r"betas=\[0.9, 1.0\] must each lie in 0..1"),
        ("train.keep=0", "train.keep: .*greater than or equal to 1 .given 0."),
        ("data.heldout=2", "data.heldout: .*less than or equal to 0.5 .given 2."),
        ("data.tokenizer={kind: file, path: /none}", "/none: no such file; give a tokenizer"),
    ],
)
def test_bad_values_name_themselves_and_the_bound(tree: Tree, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Recipe.parse(with_overrides(tree, [override]), "recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_too_small_for_the_tokenizer(make_recipe, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocabulary=256 is less than .* 257 tokens"):
        build_trainer(make_recipe("model.vocabulary=256"), corpus)


def test_differences_are_dotted(make_recipe) -> None:
    ours, theirs = make_recipe("train.lr=0.5", "train.clip=2"), make_recipe()
    assert list(differences(ours, theirs)) == [("train.lr", 0.5, 1e-3), ("train.clip", 2, 1)]
    assert not list(differences(ours, ours))


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"train\.device=tpu is not a device; choose auto"):
        choose_device("tpu")
    beyond = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"cuda:{beyond}: torch sees {beyond} GPUs here"):
        choose_device(f"cuda:{beyond}")
