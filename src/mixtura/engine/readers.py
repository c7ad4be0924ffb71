"""What reads tokens into a state: the decoder as it is, for one sequence, or the engine's steps.

N rows whose logits are asked for, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixtura.engine.kv_cache import KVKind, check_context, has_packed_weights
from mixtura.engine.runner import Part, Runner, as_decoder, evaluating
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, DecoderOutput, LanguageModel, State
from mixtura.shapes import DecoderShape


class Reader(Protocol):
    """Sequences in slots, and what is kept of them."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def slots(self) -> int: ...

    @property
    def context(self) -> int:
        """Positions of each slot."""
        ...

    def expect(self, slot: int, length: int) -> None:
        """The text in this slot will have at least that many tokens."""
        ...

    def read(self, parts: Sequence[Part], phase: Phase) -> Tensor:
        """logits_NV, fp32, on the CPU, after each part that asks for them.

        What a slot holds before a part is kept. After an interruption the same parts, or such as
        begin before them, can be read again.
        """
        ...


class WholeModel:
    """The decoder's own forward pass: torch's attention over the one sequence of a state.

    In bf16 it rounds where `models` does, so its tokens are those of the model itself. Torch fixes
    its arithmetic by the number of tokens, whatever the phase.
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
        """Its decoder looks at the positions that it is given, and reads again by itself."""

    def read(self, parts: Sequence[Part], phase: Phase) -> Tensor:
        (part,) = parts
        # An interruption may have left new keys in some layers and not in the others.
        self.state.length = part.start
        with evaluating(self.decoder), torch.inference_mode():
            tokens_BS = torch.tensor([part.tokens], device=self.state.device)
            output: DecoderOutput = self.decoder(tokens_BS, state=self.state)
            last_NV = output.logits_BSV[0, -1:] if part.asked else output.logits_BSV[0, :0]
            return last_NV.float().cpu()


def reader_for(model: LanguageModel, context: int | None, kv: KVKind | None) -> Reader:
    """The engine's steps for packed models, and where a kind of cache is asked for.

    `context` None is the model's own. Raises ConfigError for a model that is no decoder, and for a
    context beyond the model's.
    """
    decoder = as_decoder(model)
    context = decoder.config.context if context is None else context
    check_context(context, decoder.config)
    if kv is not None or has_packed_weights(decoder):
        return Runner.of(decoder, 1, context, kv or "bf16")
    return WholeModel(decoder, context)
