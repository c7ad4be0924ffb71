"""What is in any model, from what its files say of it.

Torch is not imported, but for a packed folder, an `lstm_moe` run, and to compare digests of old.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtura.config import read_yaml
from mixtura.errors import CheckpointError, ConfigError, reading
from mixtura.integrity import Check
from mixtura.interop.hub import folder_of
from mixtura.interop.inspection import Inspection, inspect_packed, inspect_source
from mixtura.interop.pulled_models import is_named
from mixtura.packed.folder import FILE, is_packed
from mixtura.shapes import ModelShape
from mixtura.shapes.families import shape_of
from mixtura.shapes.known import known_config, known_shape
from mixtura.train.run_files import CHECKPOINTS, RECIPE, is_run

GATES_OF_THEIR_OWN = frozenset({"batchwise", "hash", "hierarchical", "noisy_topk", "reinforce"})
"""kinds of routers whose weights are more than one matrix, or other ones: their configs know"""


def inspect_model(model: str | Path, *, verify: bool = False) -> Inspection:
    """What is in it; of a known name, such as mixtral-8x7b, the shape alone.

    Reads no weight, but all of a packed folder, or to `verify`, and compares them with their
    digests.

    Raises CheckpointError, ConfigError or DataError, by name, for what cannot be used.
    """
    name = str(model)
    if not Path(name).exists() and "/" not in name and not is_named(name):
        # Of no such name either, the error lists the nearest.
        family = known_config(name)["model_type"]
        return Inspection(name, family, known_shape(name))
    with reading(name):
        path = folder_of(name)
        found = _inspected(path)
        if not verify and not is_packed(path):
            return found
        found.check.finish()
        return replace(found, verified=found.check.claims > 0)


def _inspected(path: Path) -> Inspection:
    if is_packed(path):
        from mixtura.packed.file import PackedFile

        return inspect_packed(PackedFile(path / FILE))
    if is_run(path):
        return _inspected_run(path)
    from mixtura.interop.sources import open_source

    return inspect_source(open_source(path))


def _inspected_run(path: Path) -> Inspection:
    try:
        model = model_of_recipe(path / RECIPE)
    except ConfigError as error:
        raise CheckpointError(
            f"{error}; this run's recipe was changed, or written by another version of Mixtura"
        ) from error
    from mixtura.train.checkpoint import Checkpoints

    checkpoints = Checkpoints(path / CHECKPOINTS)
    newest = checkpoints.newest()
    check = Check() if newest is None else checkpoints.check(newest, model.shape)
    return Inspection(str(path), model.kind, model.shape, check=check, config=model.config)


@dataclass(frozen=True, slots=True)
class RecipeModel:
    """The model that a recipe describes."""

    kind: str
    shape: ModelShape
    config: Mapping[str, Any]
    """as the recipe has it, or all of it where torch was needed to read it"""


def model_of_recipe(path: Path) -> RecipeModel:
    """How the model routes and trains is not checked here, as `mixtura train` does.

    Raises ConfigError where the file is no recipe or its model has no such shape.
    """
    config = read_yaml(path).get("model")
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{path}: has no section 'model'; give a recipe that 'mixtura train' takes"
        )
    kind, moe = config.get("kind", "decoder"), config.get("moe")
    router = moe.get("router") if isinstance(moe, Mapping) else None
    own = isinstance(router, Mapping) and router.get("kind") in GATES_OF_THEIR_OWN
    if kind == "decoder" and not own and "vocabulary" in config:
        return RecipeModel(kind, shape_of(config, f"{path}: model"), config)
    from mixtura.train.recipe import load_recipe

    model = load_recipe(path).model
    return RecipeModel(model.kind, model, model.model_dump(mode="json"))
