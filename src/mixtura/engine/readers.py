"""How a context reads one sequence: through the decoder as it is, or through the engine's steps.

V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixtura.engine.kv_cache import KVKind, check_context, has_packed_weights
from mixtura.engine.runner import Runner, as_decoder, evaluating
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, DecoderOutput, LanguageModel, State


class Reader(Protocol):
    """One sequence, and what is kept of it."""

    capacity: int

    def expect(self, length: int) -> None:
        """The text will have at least that many tokens."""
        ...

    def read(self, tokens: Sequence[int], start: int, phase: Phase) -> Tensor:
        """logits_V after these tokens, fp32, on the CPU; what came before `start` is kept.

        After an interruption the same part, or one that begins before it, can be read again.
        """
        ...


class WholeModel:
    """The decoder's own forward pass and state: torch's attention over one sequence.

    In bf16 it rounds where `models` does, so its tokens are those of the model itself.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        weight = decoder.head.weight
        self.decoder, self.capacity = decoder, capacity
        self._state = State.empty(decoder.config, 1, capacity, weight.dtype, weight.device)
        self._device = weight.device

    def expect(self, length: int) -> None:
        """Its decoder looks at the positions that it is given, and reads again by itself."""

    def read(self, tokens: Sequence[int], start: int, phase: Phase) -> Tensor:
        self._state.length = start
        with evaluating(self.decoder), torch.inference_mode():
            tokens_BS = torch.tensor([tokens], device=self._device)
            output: DecoderOutput = self.decoder(tokens_BS, state=self._state)
            return output.logits_BSV[0, -1].float().cpu()


class OneSlot:
    """The engine's steps, of which one slot is used."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.capacity = runner, runner.plan.context

    def expect(self, length: int) -> None:
        self._runner.expect(0, length)

    def read(self, tokens: Sequence[int], start: int, phase: Phase) -> Tensor:
        token_R = torch.tensor(tokens)
        position_R = torch.arange(start, start + len(token_R))
        last_N = torch.tensor([len(token_R) - 1])
        slot_R = torch.zeros_like(token_R)
        return self._runner.step(token_R, slot_R, position_R, phase, last_N)[0]


def reader_for(model: LanguageModel, capacity: int | None, kv: KVKind | None) -> Reader:
    """The engine's steps for packed models, and where a kind of cache is asked for.

    `capacity` None is the model's own context. Raises ConfigError for a model that is no decoder,
    and for a capacity beyond its context.
    """
    decoder = as_decoder(model)
    capacity = decoder.config.context if capacity is None else capacity
    check_context(capacity, decoder.config)
    if kv is not None or has_packed_weights(decoder):
        return OneSlot(Runner.of(decoder, 1, capacity, kv or "bf16"))
    return WholeModel(decoder, capacity)
