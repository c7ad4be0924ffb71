"""Steps of a decoder over a state of many sequences.

R rows, N logit rows, L positions of a slot, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind, has_packed_weights
from mixtura.engine.history_steps import HistorySteps
from mixtura.engine.module_steps import ModuleSteps
from mixtura.engine.program import Program, why_not
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.steps import Routes, StepRows, Steps
from mixtura.errors import ConfigError
from mixtura.kernels.native import native
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, LanguageModel, State
from mixtura.models.long_texts import LongTexts
from mixtura.packed import PackedLinear
from mixtura.shapes import DecoderShape

# The most rows of a prefill step. Chunks of a prompt are counted from its beginning.
CHUNK = 512


class SlotTokens(NamedTuple):
    """Consecutive tokens of one slot, which a step reads."""

    slot: int
    start: int
    """position of the first token"""
    tokens: Sequence[int]
    with_logits: bool
    """whether the step returns the logits after the last token"""


class Runner:
    """A decoder, a state with a slot for each of several sequences, and the steps over both.

    In packed models the result of a row depends only on the row, on the earlier positions of its
    slot, and on the phase. In other models torch may add in another order when the number of rows
    in a step changes.
    """

    def __init__(self, decoder: Decoder, plan: CachePlan, fused: bool | None = None) -> None:
        """Use the native program where it supports the decoder, else torch's modules.

        `fused=False` selects the modules. `fused=True` selects the program, and raises ConfigError
        with the reason where the program does not support the decoder. The state is on the
        decoder's device. Raises ConfigError for a decoder on several devices or on one that is
        neither a CPU nor CUDA, for packed weights outside the CPU, and for a router that is not
        causal.
        """
        _check_model(decoder)
        self.decoder, self.plan = decoder, plan
        # None for the CPU, where the rows already are.
        self._device = None if decoder.device.type == "cpu" else decoder.device
        self.state = plan.allocate(self._device)
        angles = RopeTables.of(decoder.config, plan.context, self._device)
        steps, histories = _steps_of(decoder, self.state, angles, fused), self.state.histories
        self._steps = steps if histories is None else HistorySteps(steps, histories)
        self._texts = self.state.texts

    @classmethod
    def of(
        cls, decoder: LanguageModel, slots: int, context: int | None = None, kv: KVKind = "bf16"
    ) -> "Runner":
        """A runner for `slots` sequences of `context` positions, by default the model's context."""
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
        """The most positions of a slot."""
        return self.plan.context

    def expect(self, slot: int, length: int) -> None:
        """Announce that the text in this slot will have at least `length` tokens.

        Under LongRoPE a long text then uses the long factors from its first token on. Otherwise it
        is read again when it grows past the original context.
        """
        if self._texts is not None:
            self._texts.expect(slot, length)

    def read(self, parts: Sequence[SlotTokens], phase: Phase) -> Tensor:
        """logits_NV, fp32: a row for each part with `with_logits`; see `step`."""
        # Lists become tensors once at the end. A torch operation on a few numbers takes 20 us here,
        # because each step sweeps the processor's caches.
        tokens_R: list[int] = []
        slots_R: list[int] = []
        positions_R: list[int] = []
        logit_row_N: list[int] = []
        for slot, start, tokens, with_logits in parts:
            slots_R += [slot] * len(tokens)
            positions_R += range(start, start + len(tokens))
            tokens_R += tokens
            if with_logits:
                logit_row_N.append(len(tokens_R) - 1)
        return self.step(
            torch.tensor(tokens_R),
            torch.tensor(slots_R),
            torch.tensor(positions_R),
            phase,
            torch.tensor(logit_row_N, dtype=torch.int64),
        )

    def step(
        self,
        token_R: Tensor,
        slot_R: Tensor,
        position_R: Tensor,
        phase: Phase,
        logit_row_N: Tensor | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        """logits_NV, fp32, of the rows with the numbers `logit_row_N`, by default of all rows.

        Arguments are int64 and on the CPU, as is the result. A row attends to the earlier positions
        of its slot, in the cache or in this step. The rows of a slot must be in the order of their
        positions. A row at an earlier position goes back in the text of its slot. In a packed
        model `verify` gives bit for bit what `decode` gives row after row. Raises ConfigError for a
        row outside the cache or the vocabulary.
        """
        # The native program reads these tensors by their addresses.
        token_R, slot_R, position_R = (of_R.contiguous() for of_R in (token_R, slot_R, position_R))
        self._check(token_R, slot_R, position_R)
        logit_row_N = torch.arange(len(token_R)) if logit_row_N is None else logit_row_N
        if self._device is not None:
            every = (token_R, slot_R, position_R, logit_row_N)
            token_R, slot_R, position_R, logit_row_N = (of_R.to(self._device) for of_R in every)
        with evaluating(self.decoder), torch.inference_mode():
            if self._texts is None:
                rows = StepRows(token_R, slot_R, position_R, position_R)
            else:
                if phase == "verify":
                    self._texts.check_one_kind(slot_R, position_R)
                rows = self._with_angles(self._texts, token_R, slot_R, position_R)
            logits_NV = self._steps(rows, phase, logit_row_N, routes)
            return logits_NV if self._device is None else logits_NV.cpu()

    def _with_angles(
        self, texts: LongTexts, token_R: Tensor, slot_R: Tensor, position_R: Tensor
    ) -> StepRows:
        """The rows with their angles. Texts that need other LongRoPE factors are read again."""
        nothing_N = token_R[:0]
        for slot, token_L in texts.to_read_again(token_R, slot_R, position_R):
            for start in range(0, len(token_L), CHUNK):
                part_R = token_L[start : start + CHUNK]
                at_R = torch.arange(start, start + len(part_R), device=part_R.device)
                in_R = torch.full_like(at_R, slot)
                again = StepRows(part_R, in_R, at_R, texts.angle(in_R, at_R))
                self._steps(again, "prefill", nothing_N)
        return StepRows(token_R, slot_R, position_R, texts.angle(slot_R, position_R))

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
    """The model itself. Raises ConfigError where it is no decoder, as an MoE between LSTMs."""
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


def _steps_of(decoder: Decoder, state: State, angles: RopeTables, fused: bool | None) -> Steps:
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
    """The decoder in eval mode, without router jitter and load counts; its mode is restored."""
    was_training = decoder.training
    if was_training:
        decoder.eval()
    try:
        yield
    finally:
        if was_training:
            decoder.train()
