"""Loads the model of a training run's newest checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mixtura.errors import CheckpointError
from mixtura.integrity import Check
from mixtura.models import LanguageModel
from mixtura.models.blueprint import without_weights
from mixtura.runs.checkpoint import MODEL, check_fits, read_meta, read_tensors
from mixtura.runs.folder import RunFolder
from mixtura.runs.recipe import Recipe
from mixtura.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """The model and the tokenizer of a run's newest checkpoint; `decoder` is in eval mode."""

    recipe: Recipe
    decoder: LanguageModel
    tokenizer: Tokenizer
    step: int
    check: Check
    """the comparison of the weights with their digests; with `wait=False` it may still run"""


def load_run(folder: Path, device: torch.device | str = "cpu", *, wait: bool = True) -> LoadedRun:
    """Load the model of the newest checkpoint, in eval mode.

    The weights are compared with their digests before this function returns, or in the background
    with `wait=False`. Raises CheckpointError if the folder holds no run or no checkpoint, or if the
    checkpoint is damaged.
    """
    run = RunFolder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run; give the folder that --out named")
    recipe = run.recorded()
    if recipe is None:
        raise CheckpointError(f"{folder}: holds no run ({run.recipe.name} is missing)")
    checkpoints = run.checkpoints()
    newest = checkpoints.newest()
    if newest is None:
        raise CheckpointError(
            f"{folder}: has no checkpoint yet; go on training it with --resume until it has"
        )
    step, tensors = checkpoints.attempt(newest, _step_and_model)
    with without_weights():
        decoder = recipe.model.build()
    check_fits(decoder, tensors, newest / MODEL)
    decoder.load_state_dict(tensors, assign=True)
    check = checkpoints.check(newest, recipe.model, [MODEL]).begin()
    if wait:
        check.finish()
    tokenizer = load_tokenizer(run.tokenizer)
    return LoadedRun(recipe, decoder.to(device).eval(), tokenizer, step, check)


def _step_and_model(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    return read_meta(path).step, read_tensors(path / MODEL)
