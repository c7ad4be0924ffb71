"""Describes any model from its files, without loading it.

Torch is imported only for a packed folder, for a model that is no plain decoder (see
`_is_of_a_shape`), and to compare weights with the digests of older versions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtura.checkpoints.contents import Inspection, inspect_packed, inspect_source
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.pulled_models import is_named
from mixtura.config import own_recipes, read_yaml, with_overrides
from mixtura.errors import CheckpointError, ConfigError, reading
from mixtura.integrity import Check
from mixtura.packed.folder import FILE
from mixtura.runs.file_names import CHECKPOINTS, RECIPE
from mixtura.shapes import DecoderShape, ModelShape
from mixtura.shapes.families import shape_of
from mixtura.shapes.known import known_config, known_shape
from mixtura.shapes.moe import MoEShape
from mixtura.shapes.storage.numbers import TRAINED_BYTES

PLAIN_GATES = frozenset(
    {
        *("base", "dbrx", "deepseek_v2", "deepseek_v3", "expert_choice", "expert_threshold"),
        *("gshard", "sigmoid_topk", "sinkhorn", "softmax_topk", "sparse_mixer", "switch"),
        *("top_p", "topk_softmax"),
    }
)
"""kinds of routers whose weights follow from the decoder's shape; the weights of other kinds, and
of routers from other packages, follow from the router's own config"""
DEFAULT_ROUTER = "softmax_topk"


def inspect_model(model: str | Path, *, verify: bool = False) -> Inspection:
    """Describe a model; for a known name, such as mixtral-8x7b, only its shape is described.

    Weights are read, and compared with their digests, only for a packed folder or with `verify`.

    Raises CheckpointError, ConfigError or DataError for a model that cannot be used.
    """
    name = str(model)
    if not Path(name).exists() and "/" not in name and not is_named(name):
        # For an unknown name `known_config` raises an error that lists similar known names.
        family = known_config(name)["model_type"]
        return Inspection(name, family, known_shape(name))
    with reading(name):
        path = folder_of(name)
        found = _inspected(path)
        if not verify and what_is(path) != "packed":
            return found
        found.check.finish()
        return replace(found, verified=found.check.claims > 0)


def _inspected(path: Path) -> Inspection:
    kind = what_is(path)
    if kind == "packed":
        from mixtura.packed.file import PackedFile

        return inspect_packed(PackedFile(path / FILE))
    if kind == "run":
        return _inspected_run(path)
    from mixtura.checkpoints.sources import open_source

    return inspect_source(open_source(path))


def _inspected_run(path: Path) -> Inspection:
    try:
        model = model_of_recipe(path / RECIPE)
    except ConfigError as error:
        raise CheckpointError(
            f"{error}; this run's recipe was changed, or written by another version of Mixtura"
        ) from error
    from mixtura.runs.checkpoint import Checkpoints

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
    """the recipe's `model` section; with all defaults filled in if the model is no plain decoder"""

    @property
    def router(self) -> str | None:
        """The kind of router; None if no layer is an MoE."""
        if not self.shape.moe_shapes:
            return None
        router = (self.config.get("moe") or {}).get("router") or {}
        return str(router.get("kind", DEFAULT_ROUTER))


def model_of_recipe(path: Path) -> RecipeModel:
    """Describe the model of a recipe file, as `model_of` does."""
    return model_of(read_yaml(path), str(path))


def model_of(recipe: Mapping[str, Any], origin: str) -> RecipeModel:
    """Describe the model of a recipe; error messages begin with `origin`.

    For a plain decoder the keys of routing and training are not checked. Raises ConfigError if the
    recipe has no `model` section, or if that section is invalid.
    """
    config = recipe.get("model")
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{origin}: has no section 'model'; give a recipe that 'mixtura train' takes"
        )
    if _is_of_a_shape(config):
        return RecipeModel("decoder", shape_of(config, f"{origin}: model"), config)
    from mixtura.runs.recipe import Recipe

    model = Recipe.parse(recipe, origin).model
    return RecipeModel(model.kind, model, model.model_dump(mode="json"))


def _is_of_a_shape(config: Mapping[str, Any]) -> bool:
    """Whether this is a plain decoder: one whose weights a `DecoderShape` lists without torch."""
    moe = config.get("moe") or {}
    if config.get("kind", "decoder") != "decoder" or not isinstance(moe, Mapping):
        return False
    router = moe.get("router")
    kind = router.get("kind") if isinstance(router, Mapping) else None
    plain = not isinstance(kind, str) or kind in PLAIN_GATES
    known = {"kind", *DecoderShape.model_fields}
    known_of_moe = {"capacity", "balance", "backend", *MoEShape.model_fields}
    complete = "vocabulary" in config and plain
    return complete and config.keys() <= known and moe.keys() <= known_of_moe


@dataclass(frozen=True, slots=True)
class RecipeInspection:
    """The model of a recipe, and the bytes that its weights and the optimizer take in training."""

    model: Inspection
    router: str | None
    """the kind of router; None if no layer is an MoE"""
    steps: int
    tokens_per_step: int
    weight_bytes: int
    optimizer_bytes: int

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step


def is_recipe(model: str | Path) -> bool:
    """Whether `model` names a YAML file, or a recipe that is installed with Mixtura."""
    path = Path(model)
    return path.suffix in {".yaml", ".yml"} or (not path.exists() and str(model) in own_recipes())


def inspect_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> RecipeInspection:
    """Describe the model of a recipe and the cost of its training; the corpus is not read.

    Raises ConfigError if `mixtura train` would refuse the recipe, except for keys of routing and
    balancing, which are not checked here.
    """
    from mixtura.runs.recipe_sections import RecipeSections

    origin = str(recipe)
    tree = with_overrides(read_yaml(Path(recipe)), overrides)
    if "model" not in tree:
        raise ConfigError(
            f"{origin}: has no section 'model'; it goes on from the model of --from: inspect that "
            "model"
        )
    sections = RecipeSections.parse(tree, origin)
    found = model_of({**tree, "model": sections.model}, origin)
    try:
        sections.check_context(found.shape.context)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error
    parameters = found.shape.total_parameters()
    return RecipeInspection(
        Inspection(origin, found.kind, found.shape, config=found.config),
        found.router,
        sections.train.steps,
        sections.train.tokens_per_step,
        weight_bytes=TRAINED_BYTES["weight"] * parameters,
        optimizer_bytes=TRAINED_BYTES["moments"] * parameters,
    )
