"""The interface that training, reports and loading use: tokens in, a DecoderOutput out.

B sequences, S positions, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.moe import MoEOutput
from mixtura.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """The result of a language model's forward pass."""

    logits_BSV: Tensor
    layers: tuple[MoEOutput | None, ...]
    """the output of each layer's MoE; None for a layer without an MoE"""

    @property
    def moe(self) -> list[MoEOutput]:
        return [layer for layer in self.layers if layer is not None]

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """Balance losses by name, weighted and averaged over MoE layers; empty in evaluation."""
        names = {name: None for layer in self.moe for name in layer.losses}
        return {
            name: torch.stack([layer.losses[name] for layer in self.moe]).mean() for name in names
        }

    @property
    def balance_loss(self) -> Tensor:
        """The sum of `losses`, to be added to the task's loss; 0 for a dense model."""
        return sum(self.losses.values(), self.logits_BSV.new_zeros((), dtype=torch.float32))


class LanguageModel(nn.Module, ABC):
    """A model that reads tokens from left to right and predicts the next token at each position.

    Its parameters have the names and the shapes of `config.weights()`.
    """

    config: ModelShape
    head: nn.Linear

    @abstractmethod
    def forward(self, tokens_BS: Tensor, valid_BS: Tensor | None = None) -> DecoderOutput:
        """Logits of the next token at each position.

        `valid_BS` is False for padding, which comes after the tokens of a sequence.
        """

    @property
    def device(self) -> torch.device:
        """The device of the parameters, where tokens must be too.

        Even a packed model has parameters: those of its norms.
        """
        return next(self.parameters()).device

    def check_length(self, length: int) -> None:
        """Raises ConfigError for a sequence of `length` tokens past the model's context."""
        if length > self.config.context:
            raise ConfigError(
                f"a sequence of {length} tokens exceeds the model's context of "
                f"{self.config.context}; shorten it, or train with a larger model.context"
            )


def check_padding(valid_BS: Tensor) -> None:
    """Raises ConfigError for padding before a token, which a model would read as text."""
    # `any()` waits for the GPU. It costs one wait a pass, and only where `valid_BS` is given.
    left_B = (valid_BS[..., 1:] > valid_BS[..., :-1]).any(-1)
    if left_B.any():
        raise ConfigError(
            f"valid_BS has padding before a token in {int(left_B.sum())} of {left_B.numel()} "
            "sequences; pad at the end (right padding)"
        )
