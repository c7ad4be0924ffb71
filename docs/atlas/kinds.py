"""The kinds of router, in the union's order, with what kinds.yaml says of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from mixtura.config import Config, Tree, read_yaml
from mixtura.errors import ConfigError
from mixtura.moe import MoEConfig
from mixtura.moe.routers import ROUTERS, Router, RouterSpec

FACTS = Path(__file__).parent / "kinds.yaml"
WIDTH = 512
# The shape of the recipes, and of every page's costs; `top_k` where a kind has no other.
SHAPE: Tree = {"num_experts": 64, "top_k": 2, "expert_width": 512}
PICTURE_SHAPE: Tree = {"num_experts": 16, "expert_width": 32}


class Facts(Config):
    """One entry of kinds.yaml, whose head says what each key means."""

    title: str
    source: str
    arxiv: str | None = None
    chooses: str
    experts: str = "`top_k`"
    recipe: dict[str, Any] = Field(default_factory=dict)
    picture: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of router."""

    name: str
    config: type[RouterSpec]
    router: type[Router]
    facts: Facts

    @property
    def recipe(self) -> Tree:
        """The `moe` section of the page's recipe."""
        return merged({**SHAPE, "router": {"kind": self.name}}, self.facts.recipe)

    @property
    def picture(self) -> Tree:
        """The `moe` section of the model in the picture."""
        return merged(merged(self.recipe, PICTURE_SHAPE), self.facts.picture)

    @property
    def moe(self) -> MoEConfig:
        return MoEConfig.parse(self.recipe, f"{FACTS.name}: {self.name}.recipe")


@cache
def kinds() -> Mapping[str, Kind]:
    """Every kind by name. Raises ConfigError where the registry and kinds.yaml differ."""
    facts = read_yaml(FACTS)
    if difference := sorted(ROUTERS.values.keys() ^ facts.keys()):
        raise ConfigError(
            f"{FACTS}: {', '.join(difference)} is registered or stands here, and not both; add or "
            "remove its entry"
        )
    return {
        name: Kind(name, *kind, Facts.parse(facts[name], f"{FACTS}: {name}"))
        for name, kind in ((name, ROUTERS.values[name]) for name in facts)
    }


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`tree` with the values of `over`, section by section."""
    result = dict(tree)
    for key, value in over.items():
        match result.get(key), value:
            case dict() as below, dict():
                result[key] = merged(below, value)
            case _:
                result[key] = value
    return result
