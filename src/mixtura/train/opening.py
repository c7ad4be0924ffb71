"""Any model that can be talked with: a run of ours, a checkpoint of others', a hub id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mixtura.data import Tokenizer
from mixtura.errors import CheckpointError
from mixtura.interop.hub import folder_of
from mixtura.interop.inspection import Inspection, inspect_source
from mixtura.interop.loading import LoadedModel, load_source, open_source, tokenizer_of
from mixtura.models import LanguageModel
from mixtura.train.loading import load_run
from mixtura.train.run_folder import RunFolder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model and its tokenizer, ready for use; `decoder` is in eval mode."""

    name: str
    decoder: LanguageModel
    tokenizer: Tokenizer
    origin: LoadedModel | None
    """where somebody else's came from; None for a run"""
    step: int | None = None
    """of a run: its newest checkpoint's"""

    @property
    def title(self) -> str:
        """The model's own name, and how far a run had come."""
        name = Path(self.name).resolve().name if Path(self.name).exists() else self.name
        return name if self.step is None else f"{name}, step {self.step}"


def open_model(
    model: str | Path, dtype: DTypeName | None = None, device: torch.device | str = "cpu"
) -> OpenModel:
    """A run folder, a Hugging Face folder, a GGUF file, or a hub id.

    `dtype` None keeps the one that weights are stored in, fp32 for packed formats of GGUF. Raises
    CheckpointError, ConfigError or DataError, by name, for what cannot be used.
    """
    path = folder_of(str(model))
    if is_run(path):
        run = load_run(path, device)
        if dtype is not None:
            run.decoder.to(DTYPES[dtype])
        return OpenModel(str(model), run.decoder, run.tokenizer, None, run.step)
    source = open_source(path)
    tokenizer = tokenizer_of(source)
    loaded = load_source(source, None if dtype is None else DTYPES[dtype], device)
    if tokenizer.vocabulary > loaded.decoder.config.vocabulary:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocabulary} tokens and the model "
            f"{loaded.decoder.config.vocabulary}; they belong to different models"
        )
    return OpenModel(str(model), loaded.decoder, tokenizer, loaded)


def is_run(path: Path) -> bool:
    return RunFolder(path).recipe.is_file()


def inspect_model(model: str | Path) -> Inspection:
    """What is in it; reads no weight."""
    path = folder_of(str(model))
    if not is_run(path):
        return inspect_source(open_source(path))
    recipe = RunFolder(path).recorded()
    assert recipe is not None, "asked just now"
    return Inspection(str(path), recipe.model.kind, recipe.model)
