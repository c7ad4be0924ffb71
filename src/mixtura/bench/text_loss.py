"""A model's loss on windows of text.

W windows, B windows of one pass, S tokens of a window, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mixtura.bench.windows import Windows
from mixtura.errors import NonFiniteError
from mixtura.models import LanguageModel

# The most tokens whose logits are in memory at the same time.
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The loss of a text."""

    nats: float
    """the negative log probability, summed over the predicted tokens"""
    tokens: int
    """the number of predicted tokens"""
    bytes: int
    """the UTF-8 bytes of the predicted tokens"""

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def text_loss(
    model: LanguageModel, text: Windows, progress: Callable[[int, int], None] | None = None
) -> TextLoss:
    """The loss of all tokens but the first of each window, summed in fp64.

    A token is predicted from the earlier tokens of its window. `progress` is called with the number
    of finished tokens and the number of all tokens. Raises NonFiniteError if the loss is not
    finite.
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
