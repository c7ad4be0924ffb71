"""A model's loss on windows of text. B windows at once, S positions, V vocabulary."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mixtura.bench.windows import Windows
from mixtura.errors import NonFiniteError
from mixtura.models import LanguageModel

# Logits of so many tokens are in memory at once.
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The loss of a text."""

    nats: float
    """negative log probability, summed over tokens"""
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def text_loss(
    model: LanguageModel, text: Windows, progress: Callable[[int, int], None] | None = None
) -> TextLoss:
    """The loss of every token but a window's first, given those before it; summed in fp64.

    `progress` gets tokens done and in all. Raises NonFiniteError where the loss is not finite.
    """
    count, length = text.token_WS.shape
    at_once = max(1, _TOKENS_AT_ONCE // length)
    nats = 0.0
    for start in range(0, count, at_once):
        token_BS = text.token_WS[start : start + at_once]
        with torch.inference_mode():
            logits_BSV = model(token_BS).logits_BSV[:, :-1].float()
            nats_BS = F.cross_entropy(logits_BSV.mT, token_BS[:, 1:], reduction="none")
        nats += float(nats_BS.double().sum())
        if not math.isfinite(nats):
            raise NonFiniteError(
                f"the loss of windows {start} to {start + len(token_BS) - 1} is {nats}; the "
                "model's weights or activations overflow"
            )
        if progress is not None:
            progress((start + len(token_BS)) * length, count * length)
    return TextLoss(nats, text.predicted, text.predicted_bytes)
