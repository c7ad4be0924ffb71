"""The sections of a recipe; `model` stays plain data, since parsing it would import torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from mixtura.config import Config
from mixtura.data import DataConfig
from mixtura.runs.train_config import TrainConfig
from mixtura.tokenizers import BpeConfig, BytesConfig, ByteTokenizer, FileConfig, GivenConfig


class RecipeSections(Config):
    """A recipe whose `model` is not parsed; a missing vocabulary is taken from the tokenizer."""

    name: str = Field(default="run", min_length=1)
    model: Any
    data: DataConfig = DataConfig()
    train: TrainConfig

    @model_validator(mode="before")
    @classmethod
    def _vocabulary_from_tokenizer(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        model = tree.get("model")
        if not isinstance(model, Mapping) or "vocabulary" in model:
            return tree
        try:
            vocabulary = _vocabulary(DataConfig.model_validate(tree.get("data", {})))
        except ValidationError:
            # The section `data` is parsed again as a field, which raises the error for the user.
            vocabulary = 1
        return {**tree, "model": {**model, "vocabulary": vocabulary}}

    def check_context(self, context: int) -> None:
        """Raise ValueError if the model's context is shorter than the training sequences."""
        if self.train.length > context:
            raise ValueError(
                f"train.length={self.train.length} is longer than the model's "
                f"context={context}; lower train.length or raise model.context"
            )


def _vocabulary(data: DataConfig) -> int:
    match data.tokenizer:
        case BytesConfig():
            return ByteTokenizer.vocabulary
        case BpeConfig() as bpe:
            return bpe.vocabulary
        case FileConfig() as file:
            # A tokenizer from a file is not trained, so it needs no text.
            return file.build(lambda _: ()).vocabulary
        case GivenConfig() as given:
            return given.vocabulary
