"""The description of a traced model, stored as JSON in the schema of the trace file."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.errors import DataError

FORMAT = 1

Probabilities = Literal["float16", "float32"]


class TracedLayer(Config):
    """An MoE layer whose routing was recorded."""

    layer: int = Field(ge=0)
    """the layer's number among all layers of the model, from 0"""
    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    """experts per token; the mean or the maximum if tokens have different numbers of experts"""
    num_groups: int = Field(default=1, ge=1)
    """the number of groups of consecutive experts; all groups have the same size"""
    groups_kept: int = Field(default=1, ge=1)
    """the most groups from which a token's experts are chosen"""


class TraceMeta(Config):
    """A description of the recorded model and of the recorded values."""

    format: Literal[1] = FORMAT
    model: str
    """a title of the model for display"""
    vocabulary: int = Field(ge=1)
    layers: tuple[TracedLayer, ...] = Field(min_length=1)
    probabilities: Probabilities | None = None
    """the dtype of the recorded probabilities of all experts; null if they are not recorded"""
    tokenizer: str | None = None
    tokenizer_digest: str | None = None
    """distinguishes tokenizers that have the same name"""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        numbers = self.numbers
        if list(numbers) != sorted(set(numbers)):
            raise ValueError(f"layers={list(numbers)} must be listed once each, in order")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers' numbers in the model."""
        return tuple(layer.layer for layer in self.layers)

    def among(self, chosen: tuple[int, ...] | None) -> tuple[TracedLayer, ...]:
        """The layers with the numbers `chosen`, or all layers if `chosen` is None.

        Raises DataError for a layer that is not in the trace.
        """
        if chosen is None:
            return self.layers
        missing = sorted(set(chosen) - set(self.numbers))
        if missing:
            raise DataError(
                f"layer {missing[0]} is not in the trace, which has layers "
                f"{', '.join(map(str, self.numbers))}"
            )
        return tuple(layer for layer in self.layers if layer.layer in chosen)
