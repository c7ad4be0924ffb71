"""The one loop that generates text: sequences begin and end while others go on.

N sequences that get a token in a step, V vocabulary.
"""

from collections import abc
from time import perf_counter
from typing import NamedTuple

from mixtura.engine.cache_plan import check_length
from mixtura.engine.next_token import next_tokens
from mixtura.engine.readers import Reader
from mixtura.engine.runner import CHUNK, SlotTokens, check_bounds
from mixtura.engine.sequence import FinishReason, Sequence
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase


class Scheduler:
    """Sequences over one reader: `begin` gives one a slot, and `advance` computes a step of all.

    A sequence has ended once its `finish` is set. Sampled token ids are below `known`, such as the
    tokenizer's vocabulary size; by default any id of the model may be sampled.
    """

    def __init__(self, reader: Reader, known: int | None = None) -> None:
        self.reader, self._known = reader, known
        self.running: list[Sequence] = []
        self._free = list(reversed(range(reader.slots)))
        self._read_last = False
        self._seconds = 0.0

    def check(self, one: Sequence) -> None:
        """Raises ConfigError for a prompt longer than the context, and for tokens outside the
        vocabulary, in the prompt or in `logit_bias`.
        """
        shape = self.reader.shape
        one.sampler.sampling.check_vocabulary(shape.vocabulary)
        check_length("the prompt", len(one.prompt), self.reader.context, shape)
        remedy = "the model's vocabulary; encode with its own tokenizer"
        check_bounds("token", one.prompt, shape.vocabulary, remedy)

    def begin(self, one: Sequence) -> None:
        """Give the sequence a slot. Raises ConfigError where no slot is free, and as `check`."""
        self.check(one)
        if not self._free:
            raise ConfigError(
                f"{len(self.running) + 1} sequences exceed the {self.reader.slots} slots that the "
                "cache was sized for; let one end first, or ask for more slots"
            )
        one.slot = self._free.pop()
        self.reader.expect(one.slot, len(one.prompt))
        one.began = one.first = one.last = self._seconds
        self.running.append(one)

    def leave(self, one: Sequence) -> None:
        """End a sequence early, with the finish "interrupted"."""
        if one.finish is None:
            self._end(one, "interrupted")

    def advance(self) -> list[Sequence]:
        """Compute one step; returns the sequences that got a token, some of which may have ended.

        A step reads up to CHUNK tokens of prompts, or gives each running answer its next token.
        Where there are both, the two kinds of step alternate. After an interruption the same step
        can be computed again.
        """
        began = perf_counter()
        answers = [one for one in self.running if one.tokens]
        reads = len(answers) < len(self.running) and not (answers and self._read_last)
        if reads:
            step = _chunks((one for one in self.running if not one.tokens), CHUNK)
        elif answers:
            step = _Step([one.next_part() for one in answers], answers, "decode")
        else:
            return []
        self._take(step, began)
        self._read_last = reads
        self._seconds += perf_counter() - began
        return step.moved

    def _take(self, step: "_Step", began: float) -> None:
        logits_NV = self.reader.read(step.parts, step.phase)
        read = self._seconds + perf_counter() - began
        moved, tokens = step.moved, []
        if moved:
            tokens = next_tokens(logits_NV, [one.sampler for one in moved], self._known)
        for one, length in step.chunks:
            one.prompt_read += length
        context = self.reader.context
        for row, (one, token) in enumerate(zip(moved, tokens, strict=True)):
            if not one.tokens:
                one.first = read
            one.take(token, logits_NV[row], context)
            one.last = self._seconds + perf_counter() - began
            if one.finish is not None:
                self._end(one, one.finish)

    def _end(self, one: Sequence, finish: FinishReason) -> None:
        one.finish = finish
        self.running.remove(one)
        self._free.append(one.slot)


class _Step(NamedTuple):
    """The parts that one step reads, and the sequences that they belong to."""

    parts: list[SlotTokens]
    moved: list[Sequence]
    """the sequences that get a token, in the order of their parts"""
    phase: Phase
    chunks: abc.Sequence[tuple[Sequence, int]] = ()
    """the sequences whose prompts have more chunks, and how many tokens this step reads of each"""


def _chunks(prompts: abc.Iterable[Sequence], rows: int) -> _Step:
    """The next chunks of prompts, the oldest prompt first, that fit whole into `rows`."""
    parts: list[SlotTokens] = []
    moved: list[Sequence] = []
    chunks: list[tuple[Sequence, int]] = []
    for one in prompts:
        part = one.next_part()
        if len(part.tokens) > rows:
            continue
        parts.append(part)
        rows -= len(part.tokens)
        if part.with_logits:
            moved.append(one)
        else:
            chunks.append((one, len(part.tokens)))
    return _Step(parts, moved, "prefill", chunks)
