"""Readers of tokens: the engine's steps, or the decoder's own forward pass for one sequence.

B sequences, S positions, N logit rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixtura.engine.cache_plan import KVKind, check_context, has_packed_weights
from mixtura.engine.runner import Runner, SlotTokens, as_decoder, evaluating
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, DecoderOutput, LanguageModel, State
from mixtura.shapes import DecoderShape


class Reader(Protocol):
    """Reads tokens of sequences in slots, and keeps their keys and values."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def slots(self) -> int: ...

    @property
    def context(self) -> int:
        """The most positions of a slot."""
        ...

    def expect(self, slot: int, length: int) -> None:
        """Announce that the text in this slot will have at least `length` tokens."""
        ...

    def read(self, parts: Sequence[SlotTokens], phase: Phase) -> Tensor:
        """logits_NV, fp32, on the CPU: a row for each part with `with_logits`.

        A slot keeps its positions before a part. After an interruption the same parts can be read
        again, or parts that begin earlier.
        """
        ...


class WholeModel:
    """The decoder's own forward pass over one sequence, with torch's attention.

    A bf16 model rounds here as in `Decoder.forward`, so its tokens are those of the model itself.
    The phase has no effect: torch chooses its arithmetic by the number of tokens.
    """

    slots = 1

    def __init__(self, decoder: Decoder, context: int) -> None:
        weight = decoder.head.weight
        self.decoder, self.context = decoder, context
        self.state = State.empty(decoder.config, 1, context, weight.dtype, weight.device)

    @property
    def shape(self) -> DecoderShape:
        return self.decoder.config

    def expect(self, slot: int, length: int) -> None:
        """Does nothing: the decoder itself reads a text again where LongRoPE requires it."""

    def read(self, parts: Sequence[SlotTokens], phase: Phase) -> Tensor:
        (part,) = parts
        # After an interruption some layers may hold more positions than others.
        self.state.length = part.start
        with evaluating(self.decoder), torch.inference_mode():
            tokens_BS = torch.tensor([part.tokens], device=self.state.device)
            output: DecoderOutput = self.decoder(tokens_BS, state=self.state)
            last_NV = output.logits_BSV[0, -1:] if part.with_logits else output.logits_BSV[0, :0]
            return last_NV.float().cpu()


def reader_for(model: LanguageModel, context: int | None, kv: KVKind | None) -> Reader:
    """A `Runner` for packed models and for a given `kv`, else a `WholeModel`.

    `context` None means the model's context. Raises ConfigError for a model that is no decoder, and
    for a context outside 1..the model's context.
    """
    decoder = as_decoder(model)
    context = decoder.config.context if context is None else context
    check_context(context, decoder.config)
    if kv is not None or has_packed_weights(decoder):
        return Runner.of(decoder, 1, context, kv or "bf16")
    return WholeModel(decoder, context)
