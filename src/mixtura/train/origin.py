"""The origin of a run: the model that gives a run its first weights, shape and tokenizer."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.checkpoints.hf.folder import read_json
from mixtura.checkpoints.open_model import OpenModel, is_gguf, open_model
from mixtura.config import Config, Tree
from mixtura.errors import CheckpointError, ConfigError
from mixtura.models import LanguageModel
from mixtura.runs.checkpoint import check_fits
from mixtura.runs.folder import RunFolder
from mixtura.runs.recipe import Recipe, differences
from mixtura.tokenizers import GivenConfig, Tokenizer

# These keys concern only training, so a run's values for them may differ from its origin's values.
_OF_TRAINING = ("model.moe.balance.", "model.moe.capacity.", "model.moe.backend")


class OriginRecord(Config):
    """The content of a run's origin.json."""

    model: str
    """the name that the user gave"""
    step: int | None
    """if `model` names a run, the step of the checkpoint that was taken; else None"""
    digest: str
    """SHA-256 of the names of the weights and of their values in fp32"""


@dataclass(frozen=True)
class Origin:
    """The model with whose weights a run begins, and the model's tokenizer."""

    name: str
    step: int | None
    decoder: LanguageModel
    tokenizer: Tokenizer

    @classmethod
    def open(cls, model: str) -> "Origin":
        """Open a model. Raises the errors of `open_model`, and CheckpointError if it is packed."""
        # Without a dtype `open_model` packs a quantised GGUF file, which rounds its weights again.
        found: OpenModel = open_model(model, "float32" if is_gguf(model) else None)
        if found.packed is not None:
            raise CheckpointError(
                f"{model}: is packed, and rounded weights are a poor start for training; begin "
                "with the model that it was packed from"
            )
        return cls(model, found.step, found.decoder, found.tokenizer)

    def begin(self, decoder: LanguageModel) -> None:
        """Copy the origin's weights to `decoder`, which has the same shape and keeps its dtype."""
        weights = self.decoder.state_dict()
        check_fits(decoder, weights, Path(self.name))
        decoder.load_state_dict(weights)

    @cached_property
    def record(self) -> OriginRecord:
        return OriginRecord(
            model=self.name, step=self.step, digest=_digest(self.decoder.state_dict())
        )

    def recipe(self, tree: Mapping[str, Any], place: str) -> Recipe:
        """Parse the recipe in `tree`; if it names no model or no tokenizer, it gets the origin's.

        Raises ConfigError if `tree` names a model or a tokenizer that differs from the origin's.
        """
        own = self.decoder.config.model_dump(mode="json")
        given = tree.get("model")
        named = {"vocabulary": own["vocabulary"], **given} if isinstance(given, Mapping) else own
        tokenizer = GivenConfig.of(self.tokenizer).model_dump(mode="json")
        parsed = Recipe.parse(_filled(tree, named, tokenizer), place)
        self._refuse_another_model(parsed, place)
        return parsed

    def _refuse_another_model(self, recipe: Recipe, place: str) -> None:
        own = recipe.model_copy(update={"model": self.decoder.config})
        for key, ours, theirs in differences(recipe, own):
            if not key.startswith(_OF_TRAINING):
                raise ConfigError(
                    f"{place}: {key} is {ours!r}, and {theirs!r} in {self.name}; leave the section "
                    "'model' out to take that model's own"
                )


def recipe_and_origin(
    tree: Mapping[str, Any], folder: RunFolder, model: str | None, *, resume: bool, place: str
) -> tuple[Recipe, Origin | None]:
    """Return the recipe to train, and the run's origin; the origin is None for random weights.

    It is None for a resumed run too: the weights come from the run's checkpoint. If there is no
    checkpoint yet, `reopened_origin` opens the origin by its record.
    """
    recorded = folder.recorded() if resume else None
    record = None if recorded is None else recorded_origin(folder)
    if recorded is not None and record is not None:
        if model not in (None, record.model):
            raise CheckpointError(
                f"{folder.root}: began with {record.model}, not with {model}; leave --from out to "
                "go on, or choose another --out"
            )
        return _resumed(tree, recorded, place), None
    if model is None:
        return Recipe.parse(tree, place), None
    if recorded is not None:
        raise CheckpointError(
            f"{folder.root}: began with weights of its own, not with {model}; leave --from out to "
            "go on, or choose another --out"
        )
    origin = Origin.open(model)
    return origin.recipe(tree, place), origin


def recorded_origin(folder: RunFolder) -> OriginRecord | None:
    """Read the run's origin.json. Returns None for a run that began with random weights.

    Raises CheckpointError if the file is damaged.
    """
    if not folder.origin.exists():
        return None
    try:
        return OriginRecord.parse(read_json(folder.origin, "an origin"), str(folder.origin))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def reopened_origin(folder: RunFolder) -> Origin | None:
    """Open the origin of a run that stopped before its first checkpoint.

    Returns None for a run that began with random weights. Raises CheckpointError if the origin no
    longer has the weights that the run began with.
    """
    record = recorded_origin(folder)
    if record is None:
        return None
    origin = Origin.open(record.model)
    if origin.record != record:
        raise CheckpointError(
            f"{folder.root}: began with other weights than {record.model} holds now; choose "
            "another --out"
        )
    return origin


def _resumed(tree: Mapping[str, Any], recorded: Recipe, place: str) -> Recipe:
    """Parse the recipe in `tree`; if it names no model or no tokenizer, it gets `recorded`'s."""
    run = recorded.tree()
    model = tree.get("model", run["model"])
    if isinstance(model, Mapping):
        model = {"vocabulary": run["model"]["vocabulary"], **model}
    return Recipe.parse(_filled(tree, model, run["data"]["tokenizer"]), place)


def _filled(tree: Mapping[str, Any], model: Any, tokenizer: Tree) -> Tree:
    data = tree.get("data") or {}
    if not isinstance(data, Mapping):
        # The caller's Recipe.parse raises an error for this section.
        return {**tree, "model": model}
    if "tokenizer" in data and data["tokenizer"] != tokenizer:
        raise ConfigError(
            f"data.tokenizer={data['tokenizer']!r:.60}: a model goes on with its own tokenizer, "
            "whose tokens its weights stand for; leave data.tokenizer out"
        )
    return {**tree, "model": model, "data": {**data, "tokenizer": tokenizer}}


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        values = weights[name].detach().float().contiguous()
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
