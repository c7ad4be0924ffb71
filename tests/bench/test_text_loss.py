"""Perplexity and bits per byte of models whose predictions are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from mixtura.bench.text_loss import text_loss
from mixtura.bench.windows import Windows
from mixtura.errors import NonFiniteError
from mixtura.models import LanguageModel
from mixtura.models.language_model import DecoderOutput


class Guesses(LanguageModel):
    """Gives the right next token a logit, and all others 0."""

    def __init__(self, vocabulary: int, logit: float) -> None:
        super().__init__()
        self.vocabulary, self.logit = vocabulary, logit
        self.head = nn.Linear(1, 1)

    def forward(self, tokens_BS: Tensor, valid_BS: Tensor | None = None) -> DecoderOutput:
        right_BS = tokens_BS.roll(-1, 1)
        logits_BSV = nn.functional.one_hot(right_BS, self.vocabulary) * self.logit
        return DecoderOutput(logits_BSV.float(), ())


def text(count: int, length: int, vocabulary: int) -> Windows:
    token_WS = torch.arange(count * length).view(count, length) % vocabulary
    return Windows(token_WS, torch.full_like(token_WS, 2))


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    # 8 tokens equally likely: 3 bits a token, and each is 2 bytes: 1.5 bits a byte.
    found = text_loss(Guesses(8, 0.0), text(3, 5, 8))
    assert (found.tokens, found.bytes) == (12, 24)
    assert found.perplexity == pytest.approx(8)
    assert found.bits_per_byte == pytest.approx(1.5)


def test_a_better_guess_costs_less() -> None:
    # e^2 against 7 others of e^0: the right one has 7.389 / 14.389, so a perplexity of 1.947.
    found = text_loss(Guesses(8, 2.0), text(3, 5, 8))
    assert found.perplexity == pytest.approx((math.exp(2) + 7) / math.exp(2))


def test_windows_in_several_passes_add_up() -> None:
    # 1,024 tokens at once are 4 windows of 256, so 10 windows take three passes.
    told: list[tuple[int, int]] = []
    found = text_loss(Guesses(8, 2.0), text(10, 256, 8), lambda *done: told.append(done))
    assert found.tokens == 2550
    assert found.perplexity == pytest.approx((math.exp(2) + 7) / math.exp(2))
    assert told == [(1024, 2560), (2048, 2560), (2560, 2560)]


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(NonFiniteError, match="windows 4 to 7 "):
        text_loss(OverflowsLater(), text(10, 256, 8))


class OverflowsLater(Guesses):
    """Well for the first four windows."""

    def __init__(self) -> None:
        super().__init__(8, 1.0)
        self.calls = 0

    def forward(self, tokens_BS: Tensor, valid_BS: Tensor | None = None) -> DecoderOutput:
        self.calls += 1
        output = super().forward(tokens_BS, valid_BS)
        return output if self.calls == 1 else DecoderOutput(output.logits_BSV * math.nan, ())
