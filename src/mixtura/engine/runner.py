"""A decoder and its state; a step takes rows of any sequences.

R rows, N rows whose logits are asked for, L positions of a slot, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.engine.angles import AngleTables
from mixtura.engine.kv_cache import CachePlan, KVKind, has_packed_weights
from mixtura.engine.module_steps import ModuleSteps
from mixtura.engine.program import Program, why_not
from mixtura.engine.steps import Routes, Rows, Steps
from mixtura.errors import ConfigError
from mixtura.kernels.native import native
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, LanguageModel, State
from mixtura.models.long_texts import LongTexts
from mixtura.packed import PackedLinear
from mixtura.shapes import DecoderShape

# How many rows of a prompt are read at a time, counted from its beginning.
CHUNK = 512


class Part(NamedTuple):
    """Tokens of one slot that a step reads, from a position on."""

    slot: int
    start: int
    tokens: Sequence[int]
    asked: bool
    """whether the logits after the last of them are wanted"""


class Runner:
    """Steps of a decoder over its own state of several sequences, each in a slot.

    In packed models a row's result depends on that row, what its slot holds and the phase alone. In
    others the products of torch may add in another order when other rows come along.
    """

    def __init__(self, decoder: Decoder, plan: CachePlan, fused: bool | None = None) -> None:
        """Steps are one native program where it expresses the decoder, else torch's modules.

        `fused` False takes the modules; True the program, or ConfigError says why there is none.
        The state lies where the decoder does. Raises ConfigError for a model that lies on no CPU
        or CUDA device, or on several, and for one whose router is not causal.
        """
        _check_model(decoder)
        self.decoder, self.plan = decoder, plan
        # None on the CPU, where rows need not be moved.
        self._device = None if decoder.device.type == "cpu" else decoder.device
        self.state = plan.allocate(self._device)
        angles = AngleTables.of(decoder.config, plan.context, self._device)
        self._steps = _steps_of(decoder, self.state, angles, fused)
        self._texts = self.state.texts

    @classmethod
    def of(
        cls, decoder: LanguageModel, slots: int, context: int | None = None, kv: KVKind = "bf16"
    ) -> "Runner":
        """With room for `slots` sequences of `context` positions, by default the model's own."""
        decoder = as_decoder(decoder)
        context = decoder.config.context if context is None else context
        return cls(decoder, CachePlan(decoder.config, slots, context, kv))

    @property
    def shape(self) -> DecoderShape:
        return self.plan.shape

    @property
    def slots(self) -> int:
        return self.plan.slots

    @property
    def context(self) -> int:
        """Positions of each slot."""
        return self.plan.context

    def expect(self, slot: int, length: int) -> None:
        """Say that the text in this slot will have at least `length` tokens.

        Spares LongRoPE models a second reading of a text that was first treated as short.
        """
        if self._texts is not None:
            self._texts.expect(slot, length)

    def read(self, parts: Sequence[Part], phase: Phase) -> Tensor:
        """logits_NV, fp32, after each part that asks for them; see `step`."""
        # Lists, each made a tensor once: an operation of torch on a few numbers takes 20 us between
        # two steps that have swept the processor's caches.
        tokens_R: list[int] = []
        slots_R: list[int] = []
        positions_R: list[int] = []
        asked_N: list[int] = []
        for slot, start, tokens, asked in parts:
            slots_R += [slot] * len(tokens)
            positions_R += range(start, start + len(tokens))
            tokens_R += tokens
            if asked:
                asked_N.append(len(tokens_R) - 1)
        return self.step(
            torch.tensor(tokens_R),
            torch.tensor(slots_R),
            torch.tensor(positions_R),
            phase,
            torch.tensor(asked_N, dtype=torch.int64),
        )

    def step(
        self,
        token_R: Tensor,
        slot_R: Tensor,
        position_R: Tensor,
        phase: Phase,
        asked_N: Tensor | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        """logits_NV, fp32, of the rows numbered `asked_N`, by default all; all int64, on the CPU.

        A row sees what its slot holds before its position, and the rows of its slot that come with
        it. A slot's rows stand in the order of their positions; what lies behind is forgotten when
        it is written anew. `verify` gives a packed model's rows bit for bit as `decode` does one
        after the other. Raises ConfigError for a row outside the cache or the vocabulary.
        """
        # Native programs read them by their address.
        token_R, slot_R, position_R = (of_R.contiguous() for of_R in (token_R, slot_R, position_R))
        self._check(token_R, slot_R, position_R)
        asked_N = torch.arange(len(token_R)) if asked_N is None else asked_N
        if self._device is not None:
            every = (token_R, slot_R, position_R, asked_N)
            token_R, slot_R, position_R, asked_N = (of_R.to(self._device) for of_R in every)
        with evaluating(self.decoder), torch.inference_mode():
            if self._texts is None:
                rows = Rows(token_R, slot_R, position_R, position_R)
            else:
                if phase == "verify":
                    self._texts.check_one_kind(slot_R, position_R)
                rows = self._turned(self._texts, token_R, slot_R, position_R)
            logits_NV = self._steps(rows, phase, asked_N, routes)
            return logits_NV if self._device is None else logits_NV.cpu()

    def _turned(
        self, texts: LongTexts, token_R: Tensor, slot_R: Tensor, position_R: Tensor
    ) -> Rows:
        nothing_N = token_R[:0]
        for slot, token_L in texts.to_read_again(token_R, slot_R, position_R):
            for start in range(0, len(token_L), CHUNK):
                part_R = token_L[start : start + CHUNK]
                at_R = torch.arange(start, start + len(part_R), device=part_R.device)
                in_R = torch.full_like(at_R, slot)
                again = Rows(part_R, in_R, at_R, texts.angle(in_R, at_R))
                self._steps(again, "prefill", nothing_N)
        return Rows(token_R, slot_R, position_R, texts.angle(slot_R, position_R))

    def _check(self, token_R: Tensor, slot_R: Tensor, position_R: Tensor) -> None:
        remedy = "the model's vocabulary; encode with its own tokenizer"
        # For a few rows Python's min and max are faster than torch's reductions.
        check_bounds("token", token_R.tolist(), self.decoder.config.vocabulary, remedy)
        sized = "as the cache was sized; size it for more"
        check_bounds("slot", slot_R.tolist(), self.plan.slots, sized)
        check_bounds("position", position_R.tolist(), self.plan.context, sized)


def check_bounds(name: str, numbers: Sequence[int], bound: int, remedy: str) -> None:
    """Raises ConfigError for a number outside 0..bound - 1."""
    if not numbers:
        return
    low, high = min(numbers), max(numbers)
    if low < 0 or high >= bound:
        wrong = low if low < 0 else high
        raise ConfigError(f"{name} {wrong} must lie in 0..{bound - 1}, {remedy}")


def as_decoder(model: LanguageModel) -> Decoder:
    """Raises ConfigError for a model that is no decoder, such as an MoE between LSTMs."""
    if not isinstance(model, Decoder):
        raise ConfigError(
            f"this model, a {type(model).__name__}, keeps no keys and values to read on "
            "from, so it cannot generate; take a run whose model is a decoder"
        )
    return model


def why_alone(decoder: Decoder) -> str | None:
    """Why this decoder cannot run in a batch; None where it can."""
    devices = {str(tensor.device) for tensor in decoder.parameters()}
    if len(devices) > 1:
        return f"this model lies on {' and '.join(sorted(devices))}; move it to one device"
    device = decoder.device.type
    if device not in ("cpu", "cuda"):
        return f"the engine's attention has no kernel on {device}; move the model with .to('cpu')"
    if device != "cpu" and has_packed_weights(decoder):
        return "packed weights are computed on the CPU; move the model with .to('cpu')"
    router = None if decoder.config.moe is None else decoder.config.moe.router
    if router is not None and not router.causal:
        return (
            f"router kind={router.name} chooses by other tokens too, so sequences would depend on "
            "their neighbours; generate with one at a time, through Context"
        )
    return None


def _check_model(decoder: Decoder) -> None:
    reason = why_alone(decoder)
    if reason is not None:
        raise ConfigError(reason)


def _steps_of(decoder: Decoder, state: State, angles: AngleTables, fused: bool | None) -> Steps:
    reason = "fused=False" if fused is False else why_not(decoder)
    if reason is None:
        return Program(decoder, state, angles)
    if fused:
        raise ConfigError(
            f"fused=True, and no program expresses this decoder: {reason}; leave it out to run "
            "torch's modules"
        )
    if fused is None and native() is not None and isinstance(decoder.head, PackedLinear):
        _say_once(reason)
    return ModuleSteps(decoder, state, angles)


@cache
def _say_once(reason: str) -> None:
    logging.getLogger("mixtura").warning(
        "no native program expresses this packed decoder (%s), so its modules run one by one",
        reason,
    )


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """In eval mode, without jitter and counts of load; training mode is restored afterwards."""
    was_training = decoder.training
    if was_training:
        decoder.eval()
    try:
        yield
    finally:
        if was_training:
            decoder.train()
