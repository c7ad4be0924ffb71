"""The demo's recipes: an MoE, and its dense twin, which has the same active compute."""

from importlib.resources import files

from mixtura.config import Config, Tree, with_overrides
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.runs import Recipe
from mixtura.shapes import dense_twin
from mixtura.yaml_reader import parse_yaml

EVALUATIONS = 10
EVAL_TOKENS = 65_536
CHECKPOINTS = 4


class LearningRates(Config):
    moe: float
    dense: float


def demo_tree() -> Tree:
    """The content of twins.yaml as plain data."""
    text = files("mixtura.demo").joinpath("twins.yaml").read_text("utf-8")
    return parse_yaml(text, "twins.yaml", ConfigError)


def twin_recipes(steps: int, overrides: tuple[str, ...] = ()) -> dict[str, Recipe]:
    """The recipes `moe` and `dense`, which differ only in the model and in the learning rate.

    `overrides` set dotted keys of twins.yaml, as in moe.moe.balance.loss=0. Raises ConfigError for
    a recipe that cannot be built.
    """
    tree = with_overrides(demo_tree(), overrides)
    rates = LearningRates.parse(tree["learning_rates"], "learning_rates")
    vocabulary = {"vocabulary": 257}
    moe = DecoderConfig.parse({**vocabulary, **tree["moe"]}, "moe")
    dense = DecoderConfig(**dense_twin(moe, multiple=1).model_dump())
    return {
        "moe": _recipe("demo-moe", moe, tree, rates.moe, steps),
        "dense": _recipe("demo-dense", dense, tree, rates.dense, steps),
    }


def _recipe(name: str, model: DecoderConfig, tree: Tree, rate: float, steps: int) -> Recipe:
    every = max(1, steps // EVALUATIONS)
    train = {
        **tree["train"],
        "steps": steps,
        "warmup": min(tree["train"]["warmup"], steps // 10),
        "lr": rate,
        "eval_every": every,
        "eval_tokens": EVAL_TOKENS,
        "checkpoint_every": max(1, steps // CHECKPOINTS),
    }
    parts = {"model": model.model_dump(), "data": tree["data"], "train": train}
    return Recipe.parse({"name": name, **parts}, name)
